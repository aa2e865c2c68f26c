"""The echo backend: words back, whole, streamed and delayed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.raw import chat, sse_data
from tpo_mp.backends.echo import FEATURE, EchoBackend
from tpo_mp.errors import TpoError
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Reply, Stream


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends: list[TpoError | None] = []

    def data(self, chunk: bytes) -> None:
        """Keep a chunk."""
        self.chunks.append(chunk)

    def end(self, error: TpoError | None) -> None:
        """Keep the end."""
        self.ends.append(error)


def echo(world: FakeWorld, **options: Any) -> EchoBackend:
    """Build the backend as the registry does."""
    made = FEATURE.build(FEATURE.Config(name="echo", kind="echo", **options), world.env)
    assert isinstance(made, EchoBackend)
    return made


def call_for(text: str, **more: Any) -> Call:
    """Make a chat call with one message."""
    return make_call(json.dumps(chat(text)).encode(), **more)


def infer(backend: EchoBackend, call: Call) -> Promise[Reply]:
    """Ask, keeping the promise."""
    said = backend.infer(call)
    assert isinstance(said, Promise)
    return said


def stream_of(said: Promise[Reply]) -> Stream:
    """Take the stream of an answered promise."""
    assert said.value is not None
    assert said.value.stream is not None
    return said.value.stream


def text_of(chunks: list[bytes]) -> str:
    """Join the deltas of an event stream."""
    events = sse_data(b"".join(chunks))
    assert events[-1] == b"[DONE]"
    choices = [json.loads(event)["choices"] for event in events[:-1]]
    return "".join(c[0]["delta"].get("content", "") for c in choices if c)


def test_whole_reply_has_the_callers_words_and_counts() -> None:
    """The newest user message comes back as a chat completion."""
    said = infer(echo(FakeWorld()), call_for("three little words"))
    assert said.value is not None
    body = json.loads(said.value.body or b"")
    assert body["choices"][0]["message"]["content"] == "three little words"
    assert body["usage"]["completion_tokens"] == 3
    assert said.value.backend == "echo"


def test_the_newest_user_message_counts() -> None:
    """Later assistant turns and earlier questions are not echoed."""
    turns = [("user", "old"), ("assistant", "no"), ("user", "new"), ("assistant", "prefill")]
    body = {"model": "echo", "messages": [{"role": r, "content": t} for r, t in turns]}
    said = infer(echo(FakeWorld()), make_call(json.dumps(body).encode()))
    assert said.value is not None
    assert b'"new"' in (said.value.body or b"")


def test_stream_sends_one_event_per_word() -> None:
    """Role, words, finish, terminator; the sink's end comes once."""
    sink = Collected()
    stream_of(infer(echo(FakeWorld()), call_for("a b c", stream=True))).attach(sink)
    assert len(sink.chunks) == 1 + 3 + 1 + 1
    assert text_of(sink.chunks) == "a b c"
    assert sink.ends == [None]


def test_usage_event_only_when_wanted() -> None:
    """Counts come last, in a chunk without choices, if the call asked."""
    sink = Collected()
    call = call_for("a b", stream=True, usage_wanted=True)
    stream_of(infer(echo(FakeWorld()), call)).attach(sink)
    usage = json.loads(sse_data(b"".join(sink.chunks))[-2])
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2


def test_pausing_holds_the_stream_and_resuming_continues_it() -> None:
    """A paused stream delivers nothing; nothing is lost or repeated."""
    sink = Collected()
    stream = stream_of(infer(echo(FakeWorld()), call_for("a b c", stream=True)))
    stream.pause()
    stream.attach(sink)
    assert sink.chunks == []
    stream.resume()
    assert text_of(sink.chunks) == "a b c"
    assert sink.ends == [None]


def test_cancelled_stream_is_silent() -> None:
    """After ``cancel`` the sink hears nothing, however often it is called."""
    world, sink = FakeWorld(), Collected()
    said = infer(echo(world, delay_ms=10), call_for("a b c", stream=True))
    world.advance(0.02)
    stream = stream_of(said)
    stream.attach(sink)
    before = len(sink.chunks)
    stream.cancel()
    stream.cancel()
    world.advance(1)
    assert len(sink.chunks) == before
    assert sink.ends == []


def test_delay_is_waited_on_the_clock() -> None:
    """No reply before its time, one at its time."""
    world = FakeWorld()
    said = infer(echo(world, delay_ms=50), call_for("hi"))
    world.advance(0.04)
    assert not said.done
    world.advance(0.02)
    assert said.value is not None


def test_giving_up_a_delayed_call_ends_it() -> None:
    """At once, and the timer finds nothing left to do."""
    world = FakeWorld()
    said = infer(echo(world, delay_ms=50), call_for("hi"))
    assert said.cancel()
    world.advance(1)
    assert isinstance(said.error, asyncio.CancelledError)


@pytest.mark.parametrize("delay_ms", [0, 50])
def test_its_time_to_the_first_byte_is_known(delay_ms: int) -> None:
    """As any backend's, so that metrics count its calls."""
    world = FakeWorld()
    call = call_for("hi")
    infer(echo(world, delay_ms=delay_ms), call)
    world.advance(0.06)
    assert call.upstream_at == 1000.0
    assert call.first_byte_at == pytest.approx(1000.06 if delay_ms else 1000.0)
