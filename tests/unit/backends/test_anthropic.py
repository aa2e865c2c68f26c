"""The Anthropic backend without a network: where requests go, with which headers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialects import PLAIN, REPLIES, body
from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected
from tpo_mp.backends.anthropic import FEATURE, AnthropicBackend
from tpo_mp.config.values import Secret
from tpo_mp.errors import BackendFailure, ConfigError, Rejected, TpoError
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Dialect, Reply


class FakePool:
    """Stands for the connection pool: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.receiver: Any = None

    def send(self, exchange: Any) -> None:
        """Take a request."""
        self.sent.append(exchange.request)
        self.receiver = exchange
        exchange.connection = self

    def drop(self) -> None:
        """Nothing to abort."""

    @property
    def lines(self) -> list[bytes]:
        """Request line and header lines of the last request."""
        return self.sent[-1].partition(b"\r\n\r\n")[0].split(b"\r\n")


def build(**options: Any) -> tuple[AnthropicBackend, FakePool]:
    """Build the backend on a fake pool."""
    config = FEATURE.Config(
        name="claude", kind="anthropic", **({"base_url": "http://up.example/v1"} | options)
    )
    backend = FEATURE.build(config, FakeWorld().env)
    assert isinstance(backend, AnthropicBackend)
    pool = FakePool()
    backend._origin = pool  # type: ignore[assignment]
    return backend, pool


def asked(dialect: Dialect = Dialect.ANTHROPIC_MESSAGES, **more: Any) -> Call:
    """Make a call."""
    sent = body(PLAIN["anthropic_messages"], **({"stream": True} if more.get("stream") else {}))
    return make_call(sent, model="m", dialect=dialect, **more)


def infer(backend: AnthropicBackend, call: Call) -> Promise[Reply]:
    """Ask, keeping the promise."""
    said = backend.infer(call)
    assert isinstance(said, Promise)
    return said


def head(status: int = 200, content_type: bytes = b"application/json") -> ResponseHead:
    """Make a response head."""
    made = ResponseHead()
    made.status, made.content_type = status, content_type
    return made


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        (Dialect.ANTHROPIC_MESSAGES, b"/v1/messages"),
        (Dialect.ANTHROPIC_COUNT, b"/v1/messages/count_tokens"),
    ],
)
def test_request_goes_to_the_right_place_with_our_key(dialect: Dialect, path: bytes) -> None:
    """Path, key and version are the API's; the body is untouched."""
    backend, pool = build(api_key=Secret("sk-ant-secret"))
    call = asked(dialect)
    infer(backend, call)
    assert pool.lines[0] == b"POST %b HTTP/1.1" % path
    assert b"x-api-key: sk-ant-secret" in pool.lines
    assert b"anthropic-version: 2023-06-01" in pool.lines
    assert pool.sent[0].endswith(b"\r\n\r\n" + call.body)


def test_clients_version_and_betas_stand_in_for_ours() -> None:
    """A version is sent once, the client's if it named one."""
    backend, pool = build(version="2024-01-01")
    infer(backend, asked(forward=b"anthropic-beta: a,b\r\n"))
    assert b"anthropic-version: 2024-01-01" in pool.lines
    assert b"anthropic-beta: a,b" in pool.lines
    infer(backend, asked(forward=b"anthropic-version: 2023-01-01\r\n"))
    versions = [line for line in pool.lines if line.startswith(b"anthropic-version:")]
    assert versions == [b"anthropic-version: 2023-01-01"]


def test_clients_key_stays_here_unless_it_is_forwarded() -> None:
    """By default no caller's credential goes upstream; with ``{client = true}`` only it does."""
    backend, pool = build(api_key=Secret("sk-ant-secret"))
    infer(backend, asked(authorization=b"Bearer client-key"))
    assert b"client-key" not in pool.sent[-1]
    backend, pool = build(api_key=Secret("", "client"))
    infer(backend, asked(authorization=b"Bearer client-key"))
    assert b"x-api-key: client-key" in pool.lines
    assert b"authorization" not in pool.sent[-1].lower()


def test_mapped_model_is_asked_for_by_its_upstream_name() -> None:
    """Only the model changes."""
    backend, pool = build(model_map={"m": "claude-x"})
    infer(backend, asked())
    sent = json.loads(pool.sent[0].partition(b"\r\n\r\n")[2])
    assert sent == PLAIN["anthropic_messages"] | {"model": "claude-x"}


def test_whole_reply_passes_byte_for_byte_with_its_usage() -> None:
    """The prompt's count includes what came from the cache."""
    backend, pool = build()
    said = infer(backend, asked())
    answer = body(REPLIES["anthropic_messages"])
    pool.receiver.whole(head(), answer)
    assert said.value is not None
    assert said.value.body == answer
    assert said.value.usage is not None
    assert (said.value.usage.prompt, said.value.usage.completion) == (20, 7)


def test_upstreams_refusal_reaches_the_client_as_it_came() -> None:
    """Same dialect on both sides: the error body passes."""
    backend, pool = build()
    said = infer(backend, asked())
    shown = b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'
    pool.receiver.whole(head(400), shown)
    assert isinstance(said.error, Rejected)
    assert (said.error.status, said.error.body, said.error.message) == (400, shown, "no")


START = (
    b"event: message_start\n"
    b'data: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
)
WORDS = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
)
DELTA = (
    b"event: message_delta\n"
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":4}}\n\n'
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_passes_byte_for_byte_and_is_watched(size: int) -> None:
    """Pings included, however it is cut; usage and stop reason are read as they go by."""
    backend, pool = build()
    said = infer(backend, asked(stream=True))
    text = START + PING + WORDS + DELTA + STOP
    pool.receiver.started(head(content_type=b"text/event-stream"))
    for at in range(0, len(text), size):
        pool.receiver.data(text[at : at + size])
    sink = Collected()
    assert said.value is not None
    assert said.value.stream is not None
    said.value.stream.attach(sink)
    pool.receiver.ended()
    assert sink.text == text
    assert sink.ends == [None]
    assert said.value.finish_reason == "end_turn"
    assert said.value.usage is not None
    assert (said.value.usage.prompt, said.value.usage.completion) == (3, 4)


@pytest.mark.parametrize("last", [b"", OVERLOADED])
def test_stream_without_its_end_is_an_error(last: bytes) -> None:
    """Cut, or ended by an error event: never a success."""
    backend, pool = build()
    said = infer(backend, asked(stream=True))
    pool.receiver.started(head(content_type=b"text/event-stream"))
    pool.receiver.data(START + WORDS + last)
    sink = Collected()
    assert said.value is not None
    assert said.value.stream is not None
    said.value.stream.attach(sink)
    pool.receiver.ended()
    (ended,) = sink.ends
    assert isinstance(ended, BackendFailure)


def test_legacy_completions_are_spoken_only_when_named() -> None:
    """Most servers of this API no longer have them."""
    assert Dialect.ANTHROPIC_COMPLETE not in build()[0].dialects
    backend, pool = build(apis=("messages", "complete"))
    assert backend.dialects == (Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COMPLETE)
    infer(backend, asked(Dialect.ANTHROPIC_COMPLETE))
    assert pool.lines[0] == b"POST /v1/complete HTTP/1.1"


def test_api_it_does_not_have_is_a_config_error() -> None:
    """Found when the chain is built, with the backend's name."""
    with pytest.raises(ConfigError, match=r"backends\.claude\.apis"):
        build(apis=("chat",))


def test_overloaded_upstream_may_be_tried_again() -> None:
    """529 is this API's 503."""
    backend, pool = build()
    said = infer(backend, asked())
    pool.receiver.whole(head(529), b'{"type":"error","error":{"type":"overloaded_error"}}')
    assert isinstance(said.error, TpoError)
    assert (said.error.status, said.error.retryable) == (503, True)
