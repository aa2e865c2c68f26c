"""The OpenAI backend without a network: what it sends, and what it makes of what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.raw import chat
from tpo_mp.backends.openai import FEATURE, OpenAIBackend
from tpo_mp.config.values import Secret
from tpo_mp.errors import (
    BackendFailure,
    BackendTimeout,
    ConfigError,
    RateLimited,
    Rejected,
    Shed,
    TpoError,
)
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Reply


class FakeOrigin:
    """Stands for the connection pool: keeps the request, and counts what is cancelled."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.receiver: Any = None
        self.cancelled = 0
        self.full = False

    def send(self, exchange: Any) -> None:
        """Take a request."""
        if self.full:
            raise OverflowError
        self.sent.append(exchange.request)
        self.receiver = exchange
        exchange.connection = self

    def drop(self) -> None:
        """Count a cancelled request."""
        self.cancelled += 1


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.text = b""
        self.ends: list[TpoError | None] = []

    def data(self, chunk: bytes) -> None:
        """Keep a chunk."""
        self.text += chunk

    def end(self, error: TpoError | None) -> None:
        """Keep the end."""
        self.ends.append(error)


def build(**options: Any) -> tuple[OpenAIBackend, FakeOrigin]:
    """Build the backend on a fake pool."""
    config = FEATURE.Config(
        name="up", kind="openai", **({"base_url": "http://up.example:81/v1"} | options)
    )
    backend = FEATURE.build(config, FakeWorld().env)
    assert isinstance(backend, OpenAIBackend)
    origin = FakeOrigin()
    backend._origin = origin  # type: ignore[assignment]
    return backend, origin


def call_for(**body: Any) -> Call:
    """Make a chat call."""
    asked = chat("hi", model="gpt-4o") | body
    return make_call(json.dumps(asked).encode(), model="gpt-4o", stream=asked.get("stream", False))


def infer(backend: OpenAIBackend, call: Call) -> Promise[Reply]:
    """Ask, keeping the promise."""
    said = backend.infer(call)
    assert isinstance(said, Promise)
    return said


def head(status: int = 200, content_type: bytes = b"application/json") -> ResponseHead:
    """Make a response head."""
    made = ResponseHead()
    made.status = status
    made.content_type = content_type
    return made


def sent_body(origin: FakeOrigin) -> dict[str, Any]:
    """Decode the body of the last request."""
    body: dict[str, Any] = json.loads(origin.sent[-1].partition(b"\r\n\r\n")[2])
    return body


def test_request_goes_to_the_right_place_with_the_operators_headers() -> None:
    """Path, host, query, credential and extra headers are the config's; the body is untouched."""
    backend, origin = build(
        api_key=Secret("sk-secret-secret"), headers={"X-Team": "50%"}, query={"v": "2"}
    )
    call = call_for()
    infer(backend, call)
    top, _, body = origin.sent[0].partition(b"\r\n\r\n")
    lines = top.split(b"\r\n")
    assert lines[0] == b"POST /v1/chat/completions?v=2 HTTP/1.1"
    assert b"host: up.example:81" in lines
    assert b"authorization: Bearer sk-secret-secret" in lines
    assert b"X-Team: 50%" in lines
    assert b"content-length: %d" % len(body) in lines
    assert body == call.body


def test_no_credential_is_sent_unless_configured() -> None:
    """The client's own key stays here."""
    backend, origin = build()
    call = call_for()
    call.authorization = b"Bearer client-key"
    infer(backend, call)
    assert b"authorization" not in origin.sent[0].lower()


def test_mapped_model_is_asked_for_by_its_upstream_name() -> None:
    """Only the model changes; other fields pass."""
    backend, origin = build(model_map={"gpt-4o": "llama-70b"})
    infer(backend, call_for(seed=4, x_unknown={"a": [None]}))
    assert sent_body(origin)["model"] == "llama-70b"
    assert sent_body(origin)["x_unknown"] == {"a": [None]}
    assert sent_body(origin)["seed"] == 4


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stream_options": None},
        {"stream_options": {"x": 1}},
        {"metadata": {"stream_options": "mine"}},
    ],
)
def test_streams_ask_for_usage(more: dict[str, Any]) -> None:
    """``include_usage`` is added beside whatever the caller sent."""
    backend, origin = build()
    infer(backend, call_for(stream=True, **more))
    assert sent_body(origin)["stream_options"]["include_usage"] is True
    assert sent_body(origin).get("metadata") == more.get("metadata")


def test_whole_reply_passes_byte_for_byte_with_its_usage() -> None:
    """The body is not rewritten."""
    backend, origin = build()
    said = infer(backend, call_for())
    body = b'{"id":"x",  "odd": 1, "usage":{"prompt_tokens":3,"completion_tokens":4}}'
    origin.receiver.whole(head(), body)
    assert said.value is not None
    assert said.value.body == body
    assert said.value.usage is not None
    assert (said.value.usage.prompt, said.value.usage.completion) == (3, 4)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b'{"usage"', b"\xff"])
def test_200_without_json_is_a_bad_upstream_reply(body: bytes) -> None:
    """A web page is not an answer, whatever its status."""
    backend, origin = build()
    said = infer(backend, call_for())
    origin.receiver.whole(head(), body)
    assert isinstance(said.error, BackendFailure)
    assert said.error.status == 502


@pytest.mark.parametrize(
    ("status", "kind", "answered", "retryable"),
    [
        (400, Rejected, 400, False),
        (404, Rejected, 404, False),
        (413, Rejected, 413, False),
        (422, Rejected, 422, False),
        (401, BackendFailure, 502, True),
        (403, BackendFailure, 502, True),
        (408, BackendTimeout, 504, True),
        (429, RateLimited, 429, True),
        (500, BackendFailure, 502, True),
        (503, BackendFailure, 503, True),
        (529, BackendFailure, 503, True),
    ],
)
def test_upstream_status_becomes_the_clients(
    status: int, kind: type[TpoError], answered: int, retryable: bool
) -> None:
    """The client sees what it can act on; our credential is our own trouble."""
    backend, origin = build()
    said = infer(backend, call_for())
    origin.receiver.whole(head(status), b'{"error":{"message":"because","secret":1}}')
    assert isinstance(said.error, kind)
    assert said.error.status == answered
    assert said.error.retryable is retryable
    if status in (401, 403):
        assert said.error.body is None


EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def stream(chunks: list[bytes], **options: Any) -> tuple[Promise[Reply], Collected, FakeOrigin]:
    """Run a streamed reply through the backend into a sink."""
    backend, origin = build()
    said = infer(backend, call_for(stream=True, **options))
    origin.receiver.started(head(content_type=b"text/event-stream"))
    for chunk in chunks:
        origin.receiver.data(chunk)
    sink = Collected()
    if said.value is not None and said.value.stream is not None:
        said.value.stream.attach(sink)
    origin.receiver.ended()
    return said, sink, origin


def test_stream_arrives_without_the_usage_nobody_asked_for() -> None:
    """The gateway's own usage chunk is read and taken out."""
    said, sink, _ = stream([EVENT, EVENT, USAGE + DONE])
    assert sink.text == EVENT + EVENT + DONE
    assert sink.ends == [None]
    assert said.value is not None
    assert said.value.usage is not None
    assert said.value.usage.completion == 2


@pytest.mark.parametrize("size", [1, 2, 7, 33])
def test_stream_is_the_same_however_it_is_cut(size: int) -> None:
    """Reads do not fall on event borders."""
    text = b": keepalive\n\n" + EVENT + EVENT.replace(b"a", b"b") + USAGE + DONE
    said, sink, _ = stream([text[i : i + size] for i in range(0, len(text), size)])
    assert sink.text == text.replace(USAGE, b"")
    assert sink.ends == [None]
    assert said.value is not None
    assert said.value.usage is not None


def test_stream_without_its_end_is_an_error() -> None:
    """An upstream that just stops did not finish."""
    _, sink, _ = stream([EVENT, EVENT])
    assert sink.text == EVENT + EVENT
    assert len(sink.ends) == 1
    assert isinstance(sink.ends[0], BackendFailure)


@pytest.mark.parametrize("first", [b"<html>\n\n", b'data: {"choices"\n\n', b"data: []\n\n"])
def test_nonsense_at_the_start_of_a_stream_rejects_the_call(first: bytes) -> None:
    """Before the first byte went out the whole call fails, so it may be retried."""
    said, sink, origin = stream([first])
    assert isinstance(said.error, BackendFailure)
    assert sink.text == b""
    assert origin.cancelled == 1


def test_empty_stream_rejects_the_call() -> None:
    """An event stream without an event is no reply."""
    said, _, _ = stream([])
    assert isinstance(said.error, BackendFailure)


def test_cancelling_a_stream_cancels_the_request() -> None:
    """Nobody wants the rest."""
    backend, origin = build()
    said = infer(backend, call_for(stream=True))
    origin.receiver.started(head(content_type=b"text/event-stream"))
    origin.receiver.data(EVENT)
    assert said.value is not None
    assert said.value.stream is not None
    said.value.stream.cancel()
    assert origin.cancelled == 1


def test_giving_up_a_waiting_call_cancels_the_request() -> None:
    """Before the first byte there is only the promise to cancel."""
    backend, origin = build()
    said = infer(backend, call_for())
    assert said.cancel()
    assert origin.cancelled == 1
    assert isinstance(said.error, asyncio.CancelledError)


def test_full_pool_sheds() -> None:
    """Too many waiting calls are refused, not queued for ever."""
    backend, origin = build()
    origin.full = True
    with pytest.raises(Shed):
        backend.infer(call_for())


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-A": "a\r\nX-B: b"}},
        {"headers": {"X A:": "b"}},
        {"headers": {"": "b"}},
        {"ca_file": "/nowhere/ca.pem"},
    ],
)
def test_options_that_cannot_work_are_config_errors(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """They are found when the chain is built, with the backend's name."""
    with pytest.raises(ConfigError, match="up"):
        build(**options)
