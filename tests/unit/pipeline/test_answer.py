"""What an upstream's answer becomes: untouched bytes, honest ends, no usage nobody asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import Collected
from tests.support.raw import sse_data
from tpo_mp.errors import (
    BackendFailure,
    BackendTimeout,
    RateLimited,
    Rejected,
    TpoError,
)
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.pipeline import answer as module
from tpo_mp.pipeline.answer import Answer, upstream_error
from tpo_mp.types import Reply


def head(status: int = 200, content_type: bytes = b"text/event-stream") -> ResponseHead:
    """A response head."""
    made = ResponseHead()
    made.status = status
    made.content_type = content_type
    made.passed = b"x-up: 1\r\n"
    return made


JSON = b"application/json"


def event(text: str, **more: Any) -> bytes:
    """One delta."""
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Told:
    """One answer, fed by hand."""

    def __init__(
        self, *, stream: bool = True, strip: bool = False, client_key: bool = False
    ) -> None:
        self.call = make_call(b"{}", stream=stream)
        self.now = 5.0
        self.answer = Answer(self.call, b"", "up", lambda: self.now, strip, client_key)
        self.sink = Collected()
        self.dropped = 0
        self.answer.connection = self  # type: ignore[assignment]

    def drop(self) -> None:
        """The connection is aborted."""
        self.dropped += 1

    def pause(self) -> None:
        """Nothing flows by itself."""

    def resume(self) -> None:
        """Nothing flows by itself."""

    def feed(self, *reads: bytes, end: bool = True) -> Told:
        """A streamed answer; the sink is attached as soon as there is a reply."""
        self.answer.started(head())
        for data in reads:
            if not self.answer.over:
                self.answer.data(data)
            self.attach()
        if end and not self.answer.over:
            self.answer.over = True
            self.answer.ended()
        self.attach()
        return self

    def attach(self) -> None:
        """Attach the sink once."""
        reply = self.answer.promise.value
        if reply is not None and not getattr(self, "_attached", False):
            self._attached = True
            assert reply.stream is not None
            reply.stream.attach(self.sink)

    @property
    def reply(self) -> Reply:
        """The reply, which must be there."""
        assert self.answer.promise.error is None
        assert self.answer.promise.value is not None
        return self.answer.promise.value

    @property
    def reason(self) -> str:
        """Why it failed, before or after the first byte."""
        error = self.answer.promise.error or self.sink.ends[0]
        assert isinstance(error, TpoError)
        return error.reason


def pieces(data: bytes, step: int) -> list[bytes]:
    """Cut evenly."""
    return [data[at : at + step] for at in range(0, len(data), step)]


# -- whole answers ----------------------------------------------------------------------------


def test_whole_answer_is_passed_untouched() -> None:
    """With its usage read, and its allowed headers."""
    told = Told(stream=False)
    body = b'{"id":"x",  "odd": 1, "usage":{"prompt_tokens":3,"completion_tokens":4}}'
    told.answer.whole(head(200, b"application/json; charset=utf-8"), body)
    reply = told.reply
    assert (reply.status, reply.body, reply.backend) == (200, body, "up")
    assert reply.headers == b"x-up: 1\r\n"
    assert reply.usage is not None
    assert (reply.usage.prompt, reply.usage.completion) == (3, 4)
    assert told.call.first_byte_at == 5.0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'"x"', b"<html>", b'{"usage"', b'{"usage":5}', b"\xff",
             b'{"id":"\xff"}', b"[" * 100_000]
)  # fmt: skip
@pytest.mark.parametrize("framing", ["whole", "parts"])
def test_200_that_is_no_json_object(body: bytes, framing: str) -> None:
    """Is no answer, however it was framed."""
    told = Told(stream=False)
    if framing == "whole":
        told.answer.whole(head(200, JSON), body)
    else:
        told.answer.started(head(200, JSON))
        for part in pieces(body, 5000):
            told.answer.data(part)
        told.answer.ended()
    assert told.reason == "bad_upstream_body"


@pytest.mark.parametrize("framing", ["whole", "parts"])
def test_stream_request_wants_a_stream(framing: str) -> None:
    """A JSON body in its place is refused, whatever its framing."""
    told = Told(stream=True)
    if framing == "whole":
        told.answer.whole(head(200, JSON), b"{}")
    else:
        told.answer.started(head(200, JSON))
        told.answer.data(b"{}")
        told.answer.ended()
    assert told.reason == "bad_upstream_body"


def test_endless_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has a largest size, an error body a smaller one."""
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 100)
    monkeypatch.setattr(module, "MAX_ERROR_BYTES", 10)
    for status, room in ((200, 100), (500, 10)):
        told = Told(stream=False)
        told.answer.started(head(status, JSON))
        told.answer.data(b"x" * room)
        assert not told.answer.promise.done
        told.answer.data(b"x")
        assert told.reason == "endless_reply"
        assert told.dropped == 1


# -- streams ----------------------------------------------------------------------------------

STREAM = b": hello\n\n" + event("a") + event("data: [DONE]\n\nb") + LAST + DONE
CRLF = STREAM.replace(b"\n\n", b"\r\n\r\n")


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("wire", [STREAM, CRLF], ids=["LF", "CRLF"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 17, 60, 100_000])
def test_stream_passes_byte_for_byte(strip: bool, wire: bytes, step: int) -> None:
    """However it is cut, with a terminator inside a text, with either line end."""
    told = Told(strip=strip).feed(*pieces(wire, step))
    assert told.sink.text == wire
    assert told.sink.ends == [None]
    assert told.reply.finish_reason == "stop"
    assert told.reply.content_type == b"text/event-stream"


@pytest.mark.parametrize(
    "spelling", [USAGE, USAGE.replace(b":", b": "), USAGE.replace(b",", b", ")]
)
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("step", [1, 4, 29, 100, 100_000])
def test_usage_only_the_gateway_asked_for_is_taken_out(
    spelling: bytes, end: bytes, step: int
) -> None:
    """And read, wherever reads fall: also when the whole stream comes at once."""
    spelling = spelling.replace(b"data : ", b"data: ")
    wire = (event("a") + LAST + spelling + DONE).replace(b"\n\n", end)
    told = Told(strip=True).feed(*pieces(wire, step))
    assert told.sink.text == wire.replace(spelling.replace(b"\n\n", end), b"")
    assert told.sink.ends == [None]
    assert told.reply.usage is not None
    assert (told.reply.usage.prompt, told.reply.usage.completion) == (1, 2)
    assert told.reply.finish_reason == "stop"


@pytest.mark.parametrize("step", [1, 50, 100_000])
def test_usage_the_client_asked_for_stays(step: int) -> None:
    """It is only read."""
    wire = event("a", usage=None) + LAST + USAGE + DONE
    told = Told(strip=False).feed(*pieces(wire, step))
    assert told.sink.text == wire
    assert told.reply.usage is not None


def test_usage_beside_a_delta_stays() -> None:
    """Only an event that holds nothing else may go."""
    wire = event("a", usage={"prompt_tokens": 1, "completion_tokens": 1}) + LAST + DONE
    told = Told(strip=True).feed(wire)
    assert told.sink.text == wire
    assert told.reply.usage is not None


def test_text_about_usage_is_text() -> None:
    """What a model says is not what the protocol says."""
    wire = event('my "usage":{"prompt_tokens":1} is') + LAST + DONE
    told = Told(strip=True).feed(*pieces(wire, 7))
    assert told.sink.text == wire
    assert told.reply.usage is None


def test_long_streams_are_not_kept() -> None:
    """Usage and finish reason are seen as they go by; no words are remembered."""
    told = Told().feed(*[event("x" * 100)] * 1000, LAST, USAGE, DONE)
    assert told.reply.usage is not None
    assert told.reply.finish_reason == "stop"
    stream = told.reply.stream
    kept = [getattr(stream, name) for name in stream.__slots__]  # type: ignore[union-attr]
    assert sum(len(k) for k in kept if isinstance(k, bytes | list)) < 1000


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data:[DONE]\n", b"data: [DONE]\r\n"])
def test_last_line_may_lack_its_blank_one(last: bytes) -> None:
    """Some servers forget it; the stream is complete all the same."""
    for step in (3, 100_000):
        told = Told().feed(*pieces(event("a") + last, step))
        assert told.sink.text == event("a") + last
        assert told.sink.ends == [None]


@pytest.mark.parametrize(
    "rest",
    [b"", b"data: [DON", b"data: {", b'data: {"choices":[{"delta":{"content":"data: [DONE]',
     b": [DONE]\n\n"],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 100_000])
def test_stream_that_stops_short_is_an_error(rest: bytes, step: int) -> None:
    """And half an event is not passed on: an error event follows it."""
    wire = event("a") + rest
    told = Told().feed(*pieces(wire, step))
    assert told.reason == "truncated_stream"
    assert told.sink.text in (event("a"), wire if rest.endswith(b"\n\n") else event("a"))


@pytest.mark.parametrize(
    "wire",
    [b"<html>\n\n", b"data: {\n\n", b"data: []\n\n", b"data: hello\n\n", b'{"id":1}\n\n',
     b"data: \xff\n\n", b"HTTP/1.1 200\r\n\r\n"],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 100_000])
def test_nonsense_first_rejects_the_call(wire: bytes, step: int) -> None:
    """Nothing went out yet, so another backend may be tried; the connection goes."""
    told = Told().feed(*pieces(wire, step), end=False)
    assert told.reason == "bad_upstream_body"
    assert told.dropped == 1
    assert told.sink.text == b""


@pytest.mark.parametrize("reads", [[], [b": hm"], [b"data: {"], [USAGE]])
def test_stream_without_an_event_rejects_the_call(reads: list[bytes]) -> None:
    """An event stream that never says anything is no reply."""
    assert Told(strip=True).feed(*reads).reason == "truncated_stream"


def test_endless_event_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first event and after it."""
    monkeypatch.setattr(module, "MAX_EVENT_BYTES", 1000)
    for first in ([], [event("a")]):
        told = Told().feed(*first, *[b"data: " + b"x" * 100] * 20, end=False)
        assert told.reason == "endless_reply"
        assert told.dropped == 1


@pytest.mark.parametrize("step", [1009, 65_536, 1 << 23])
def test_long_event_passes_whole(step: int) -> None:
    """A picture or a whole answer in one event, in many reads, with its end cut too."""
    long = event("x" * (3 << 20))
    wire = event("a") + long[:-1]
    told = Told().feed(*pieces(wire, step), long[-1:], event("b"), b"data: [DONE]\n\n")
    assert told.sink.text == event("a") + long + event("b") + b"data: [DONE]\n\n"
    assert told.sink.ends == [None]


def test_endless_stream_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole events too have an end."""
    monkeypatch.setattr(module, "MAX_STREAM_BYTES", 1000)
    told = Told().feed(*[event("x" * 50)] * 50, end=False)
    assert told.reason == "endless_reply"
    assert len(told.sink.text) <= 1200


def test_failure_reaches_whoever_waits() -> None:
    """The promise before the first event, the sink after it; once."""
    early = Told().feed(end=False)
    early.answer.failed(BackendTimeout("slow"))
    assert isinstance(early.answer.promise.error, BackendTimeout)
    late = Told().feed(event("a"), end=False)
    late.answer.failed(BackendTimeout("slow"))
    late.answer.failed(BackendTimeout("slow"))
    assert isinstance(late.sink.ends[0], BackendTimeout)


def test_events_wait_for_the_sink() -> None:
    """Nothing is lost between the reply and its attachment, nor is the end."""
    told = Told()
    told.answer.started(head())
    told.answer.data(event("a"))
    told.answer.data(event("b") + DONE)
    told.answer.ended()
    assert told.sink.text == b""
    told.attach()
    assert sse_data(told.sink.text)[-1] == b"[DONE]"
    assert told.sink.ends == [None]


def test_cancelled_stream_is_silent() -> None:
    """The upstream is let go, once."""
    told = Told().feed(event("a"), end=False)
    stream = told.reply.stream
    assert stream is not None
    stream.cancel()
    stream.cancel()
    assert told.dropped == 1
    assert told.sink.ends == []


def test_call_given_up_before_its_first_byte_lets_the_upstream_go() -> None:
    """Cancelling the promise is enough."""
    told = Told()
    assert told.answer.promise.cancel()
    assert told.dropped == 1


# -- refusals ---------------------------------------------------------------------------------

BODY = b'{"error":{"message":"because\\u0000","secret":1}}'


@pytest.mark.parametrize(
    ("status", "client_key", "kind", "answered", "reason", "passed"),
    [
        (400, False, Rejected, 400, "upstream_rejected", True),
        (401, False, BackendFailure, 502, "upstream_auth_failed", False),
        (401, True, Rejected, 401, "upstream_rejected", True),
        (403, False, BackendFailure, 502, "upstream_auth_failed", False),
        (403, True, Rejected, 403, "upstream_rejected", True),
        (404, False, Rejected, 404, "upstream_rejected", True),
        (408, False, BackendTimeout, 504, "upstream_timeout", False),
        (413, False, Rejected, 413, "upstream_rejected", True),
        (422, False, Rejected, 422, "upstream_rejected", True),
        (429, False, RateLimited, 429, "upstream_rate_limited", True),
        (429, True, RateLimited, 429, "caller_rate_limited", True),
        (500, False, BackendFailure, 502, "upstream_error", False),
        (502, False, BackendFailure, 502, "upstream_error", False),
        (503, False, BackendFailure, 503, "upstream_overloaded", False),
        (504, False, BackendTimeout, 504, "upstream_timeout", False),
        (529, False, BackendFailure, 503, "upstream_overloaded", False),
        (301, False, BackendFailure, 502, "upstream_error", False),
        (204, False, BackendFailure, 502, "upstream_error", False),
    ],
)
def test_upstream_status_becomes_the_clients(
    status: int, client_key: bool, kind: type[TpoError], answered: int, reason: str, passed: bool
) -> None:
    """What the client can act on reaches it as it came; our own trouble does not."""
    made = head(status, JSON)
    made.retry_after = 7.0
    error = upstream_error(made, BODY, client_key)
    assert type(error) is kind
    assert (error.status, error.reason) == (answered, reason)
    assert error.body == (BODY if passed else None)
    assert "\0" not in error.message
    told = Told(stream=False, client_key=client_key)
    told.answer.whole(made, BODY)
    assert told.reason == reason


@pytest.mark.parametrize("pause", [None, 7.0])
def test_error_keeps_the_headers_that_are_for_clients(pause: float | None) -> None:
    """Whole lines, bounded; a pause that the error tells itself is not told twice."""
    made = head(429, JSON)
    made.retry_after = pause
    limits = b"x-should-retry: false\r\nx-ratelimit-limit-tokens: 5\r\n"
    made.passed = b"retry-after: 7\r\n" + limits + b"x-ratelimit-more: %b\r\n" % (b"y" * 3000)
    lines = upstream_error(made, BODY, client_key=False).lines
    assert lines == (limits if pause else b"retry-after: 7\r\n" + limits)
    made.status = 401
    assert upstream_error(made, BODY, client_key=False).lines == b""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"m"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"error":null}', "upstream answered 400"),
        (b'{"error":{"message":5}}', "upstream answered 400"),
        (b"<html>", "upstream answered 400"),
        (b"", "upstream answered 400"),
        (b"\xff", "upstream answered 400"),
        (b'{"error":' * 5000, "upstream answered 400"),
        (json.dumps({"error": "x" * 10_000}).encode(), "x" * 500),
    ],
)
def test_message_is_found_or_made(body: bytes, said: str) -> None:
    """In every shape servers use, never longer than a paragraph."""
    assert upstream_error(head(400, b"text/plain"), body, False).message == said


def test_error_body_passes_only_as_json() -> None:
    """A proxy's web page is not an API's error."""
    assert upstream_error(head(400, b"text/html"), b"{}", False).body is None
    assert upstream_error(head(400, JSON), b"<html>", False).body is None
