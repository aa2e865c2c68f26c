"""The simulator as a backend: replies in time, orders obeyed, every dialect first hand."""

from __future__ import annotations

import asyncio
import json
from time import time
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected
from tests.support.raw import chat, sse_data
from tpo_mp.backends.simulator import FEATURE, SimulatorBackend
from tpo_mp.errors import ConfigError, ConnectionCut, InvalidRequest, TpoError
from tpo_mp.pipeline.promise import Promise
from tpo_mp.simulator.catalog import MODELS
from tpo_mp.simulator.fault_rules import FaultRule
from tpo_mp.simulator.rate_limits import LimitOptions
from tpo_mp.types import Call, Dialect, Reply

MESSAGES = {"model": "claude-haiku-4-5", "max_tokens": 64,
            "messages": [{"role": "user", "content": "rivers"}]}  # fmt: skip
COMPLETION = {"model": "gpt-3.5-turbo-instruct", "prompt": "rivers"}
RESPONSE = {"model": "gpt-4o", "input": "rivers"}
COMPLETE = {"model": "claude-2.1", "prompt": "\n\nHuman: rivers\n\nAssistant:",
            "max_tokens_to_sample": 64}  # fmt: skip


def simulator(world: FakeWorld, **options: Any) -> SimulatorBackend:
    """Build the backend as the registry does."""
    made = FEATURE.build(FEATURE.Config(name="sim", kind="simulator", **options), world.env)
    assert isinstance(made.inner, SimulatorBackend)
    return made.inner


def call_for(body: dict[str, Any] | None = None, **more: Any) -> Call:
    """A call; an ordinary chat unless told otherwise."""
    body = body or chat("rivers", model="gpt-4o")
    return make_call(json.dumps(body).encode(), model=body["model"], **more)


def infer(backend: SimulatorBackend, call: Call) -> Promise[Reply]:
    """Ask, keeping the promise."""
    said = backend.infer(call)
    assert isinstance(said, Promise)
    return said


def reply_of(backend: SimulatorBackend, call: Call) -> Reply:
    """Ask where nothing waits."""
    said = infer(backend, call)
    assert said.value is not None, said.error
    return said.value


def stream_into(reply: Reply, sink: Collected) -> None:
    """Take the whole of a stream."""
    assert reply.stream is not None
    reply.stream.attach(sink)


def delivered(reply: Reply) -> list[Any]:
    """The JSON of every event of a stream."""
    sink = Collected()
    stream_into(reply, sink)
    assert sink.ends == [None]
    return [json.loads(data) for data in sse_data(sink.text) if data != b"[DONE]"]


@pytest.mark.parametrize(
    ("dialect", "body", "prefix"),
    [
        (Dialect.OPENAI_CHAT, chat("rivers", model="gpt-4o"), "chatcmpl-"),
        (Dialect.OPENAI_COMPLETIONS, COMPLETION, "cmpl-"),
        (Dialect.OPENAI_RESPONSES, RESPONSE, "resp_"),
        (Dialect.ANTHROPIC_MESSAGES, MESSAGES, "msg_01"),
        (Dialect.ANTHROPIC_COMPLETE, COMPLETE, "compl_01"),
    ],
)
def test_each_dialect_is_spoken_first_hand(
    dialect: Dialect, body: dict[str, Any], prefix: str
) -> None:
    """Whole and streamed, with that dialect's ids, and the same model."""
    backend = simulator(FakeWorld())
    whole = json.loads(reply_of(backend, call_for(body, dialect=dialect)).body or b"")
    assert whole["id"].startswith(prefix)
    assert whole["model"] == body["model"]
    events = delivered(reply_of(backend, call_for(body, dialect=dialect, stream=True)))
    assert prefix in json.dumps(events)


def test_rate_limit_headers_come_in_the_dialects_names() -> None:
    """OpenAI's with durations, Anthropic's with instants; both name the configured limit."""
    backend = simulator(FakeWorld(), requests_per_minute=60, tokens_per_minute=1000)
    openai = reply_of(backend, call_for()).headers
    assert b"x-ratelimit-limit-requests: 60\r\n" in openai
    assert b"x-ratelimit-remaining-requests: 59\r\n" in openai
    assert b"x-ratelimit-reset-requests: 1s\r\n" in openai
    assert b"openai-processing-ms: " in openai
    call = call_for(MESSAGES, dialect=Dialect.ANTHROPIC_MESSAGES)
    anthropic = reply_of(backend, call).headers
    assert b"anthropic-ratelimit-requests-limit: 60\r\n" in anthropic
    assert b"openai" not in anthropic


def test_first_token_is_waited_for_and_then_each() -> None:
    """A stream begins at the first token's time, then a token per gap; nothing comes early."""
    world = FakeWorld()
    backend = simulator(world, first_token_ms=100, token_ms=10, strategy="fixed", text="a b c d")
    said = infer(backend, call_for(stream=True))
    world.advance(0.09)
    assert not said.done
    world.advance(0.015)
    assert said.value is not None
    sink = Collected()
    stream_into(said.value, sink)
    words = lambda: [  # noqa: E731
        c["choices"][0]["delta"].get("content") for c in map(json.loads, sse_data(sink.text))
    ]
    assert words() == ["", "a"]
    world.advance(0.0201)
    assert words() == ["", "a", " b", " c"]
    world.advance(1)
    assert sink.text.endswith(b"data: [DONE]\n\n")
    assert sink.ends == [None]


def test_whole_reply_takes_as_long_as_its_stream() -> None:
    """First token plus a gap for each further one."""
    world = FakeWorld()
    backend = simulator(world, first_token_ms=100, token_ms=10, strategy="fixed", text="a b c d")
    said = infer(backend, call_for())
    world.advance(0.125)
    assert not said.done
    world.advance(0.01)
    assert said.done


def test_waiting_call_can_be_given_up() -> None:
    """The alarm then finds nobody."""
    world = FakeWorld()
    said = infer(simulator(world, first_token_ms=100), call_for())
    said.cancel()
    world.advance(1)
    assert isinstance(said.error, asyncio.CancelledError)


def test_ordered_error_is_the_dialects_own() -> None:
    """Status, body and wait, as the provider would put them."""
    backend = simulator(FakeWorld())
    with pytest.raises(TpoError) as told:
        backend.infer(call_for(forward=b"x-sim-error: 429; retry_after=7\r\n"))
    assert told.value.status == 429
    assert told.value.retry_after_s == 7
    assert json.loads(told.value.body or b"")["error"]["code"] == "rate_limit_exceeded"
    call = call_for(MESSAGES, dialect=Dialect.ANTHROPIC_MESSAGES, forward=b"x-sim-error: 529\r\n")
    with pytest.raises(TpoError) as told:
        backend.infer(call)
    assert json.loads(told.value.body or b"")["error"]["type"] == "overloaded_error"


def test_first_tries_only_fail_while_the_sdk_counts_them() -> None:
    """The third try of a client that counts is answered, by any process."""
    backend = simulator(FakeWorld())
    order = b"x-sim-error: 503; first=2\r\n"
    for tries in (b"0", b"1"):
        with pytest.raises(TpoError):
            backend.infer(call_for(forward=order + b"x-stainless-retry-count: %b\r\n" % tries))
    reply = reply_of(backend, call_for(forward=order + b"x-stainless-retry-count: 2\r\n"))
    assert reply.status == 200


def test_disconnect_after_some_tokens_cuts_the_stream() -> None:
    """Exactly that many tokens went before."""
    backend = simulator(FakeWorld(), strategy="fixed", text="a b c d e")
    reply = reply_of(backend, call_for(stream=True, forward=b"x-sim-fault: disconnect_after=3\r\n"))
    sink = Collected()
    stream_into(reply, sink)
    assert [type(end) for end in sink.ends] == [ConnectionCut]
    assert sink.text.count(b'"content":') == 1 + 3
    assert b"DONE" not in sink.text


def test_disconnect_without_a_count_comes_before_any_byte() -> None:
    """Whole or streamed."""
    backend = simulator(FakeWorld())
    for stream in (False, True):
        call = call_for(stream=stream, forward=b"x-sim-fault: disconnect\r\n")
        with pytest.raises(ConnectionCut):
            backend.infer(call)


def test_malformed_body_is_framed_but_no_json() -> None:
    """Half a whole reply; in a stream one event, and the others sound."""
    backend = simulator(FakeWorld(), strategy="fixed", text="a b c d e")
    order = b"x-sim-fault: malformed_after=2\r\n"
    body = reply_of(backend, call_for(forward=b"x-sim-fault: malformed\r\n")).body
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(body or b"")
    sink = Collected()
    stream_into(reply_of(backend, call_for(stream=True, forward=order)), sink)
    bad = []
    for data in sse_data(sink.text):
        try:
            json.loads(data)
        except ValueError:
            bad.append(data)
    assert len(bad) == 2  # and [DONE]
    assert sink.text.endswith(b"data: [DONE]\n\n")


def test_answer_in_one_pass_is_the_one_in_steps() -> None:
    """A request with a key is answered in steps: same words, counts and header lines."""
    backend = simulator(FakeWorld(), strategy="fixed", text="a b c d e", cost=True)
    plain = reply_of(backend, call_for())
    keyed = reply_of(backend, call_for(forward=b"x-sim-key: k\r\n"))
    bodies = [json.loads(reply.body or b"") for reply in (plain, keyed)]
    assert bodies[0].pop("id") != bodies[1].pop("id")
    assert all(abs(body.pop("created") - time()) < 60 for body in bodies)
    assert bodies[0] == bodies[1]
    assert plain.headers == keyed.headers
    counts = [(r.usage.prompt, r.usage.completion) for r in (plain, keyed) if r.usage]
    assert counts == [(bodies[0]["usage"]["prompt_tokens"], 5)] * 2
    assert plain.finish_reason == keyed.finish_reason == "end"
    assert (plain.backend, plain.content_type) == (keyed.backend, keyed.content_type)


def test_answer_in_one_pass_is_only_for_those_that_nothing_happens_to() -> None:
    """Latency, faults, limits and other words for those who ask again take their turn."""
    fixed: dict[str, Any] = {"strategy": "fixed", "text": "a b c d e"}
    slow = infer(simulator(FakeWorld(), **fixed, first_token_ms=10), call_for())
    assert not slow.done
    rule = msgspec.convert({"error": "429"}, FaultRule)
    with pytest.raises(TpoError, match="Rate limit"):
        simulator(FakeWorld(), **fixed, faults=(rule,)).infer(call_for())
    limits = msgspec.convert({"enforce": True}, LimitOptions)
    limited = simulator(FakeWorld(), **fixed, limits=limits, requests_per_minute=1)
    reply_of(limited, call_for())
    with pytest.raises(TpoError, match="Rate limit"):
        limited.infer(call_for())
    seen = [call_for(), call_for()]
    varied = simulator(FakeWorld(), **fixed, repeats="vary")
    for call in seen:
        reply_of(varied, call)
    assert [call.seen for call in seen] == [1, 2]


def test_stall_in_mid_stream_ends_when_it_says() -> None:
    """Silence after two tokens, then the rest."""
    world, sink = FakeWorld(), Collected()
    backend = simulator(world, strategy="fixed", text="a b c d e")
    call = call_for(stream=True, forward=b"x-sim-fault: stall_after=2; for=5\r\n")
    stream_into(reply_of(backend, call), sink)
    assert sink.text.count(b'"content":') == 1 + 2
    world.advance(4)
    assert sink.ends == []
    world.advance(1.01)
    assert sink.ends == [None]
    assert sink.text.count(b'"content":') == 1 + 5


def test_stall_that_does_not_end_is_cut_at_last() -> None:
    """No stream stays for ever, and neither does a call before its first byte."""
    world, sink = FakeWorld(), Collected()
    backend = simulator(world)
    call = call_for(stream=True, forward=b"x-sim-fault: stall_after=1\r\n")
    stream_into(reply_of(backend, call), sink)
    silent = infer(backend, call_for(forward=b"x-sim-fault: stall\r\n"))
    world.advance(599)
    assert sink.ends == []
    assert not silent.done
    world.advance(2)
    assert [type(end) for end in sink.ends] == [ConnectionCut]
    assert isinstance(silent.error, ConnectionCut)


def test_error_in_mid_stream_reaches_the_sink() -> None:
    """It is the delivery that words it."""
    backend, sink = simulator(FakeWorld()), Collected()
    call = call_for(stream=True, forward=b"x-sim-fault: error_after=1\r\n")
    stream_into(reply_of(backend, call), sink)
    (end,) = sink.ends
    assert isinstance(end, TpoError)
    assert end.status == 500


@pytest.mark.parametrize("order", [b"x-sim-error: 299", b"x-sim-fault: explode"])
def test_order_nobody_understands_is_refused(order: bytes) -> None:
    """With the header's name; never ignored."""
    with pytest.raises(InvalidRequest, match="x-sim-"):
        simulator(FakeWorld()).infer(call_for(forward=order + b"\r\n"))


def test_counting_agrees_with_usage() -> None:
    """``count_tokens`` says what the same conversation will be charged."""
    backend = simulator(FakeWorld())
    counted = reply_of(backend, call_for(MESSAGES, dialect=Dialect.ANTHROPIC_COUNT))
    whole = reply_of(backend, call_for(MESSAGES, dialect=Dialect.ANTHROPIC_MESSAGES))
    usage = json.loads(whole.body or b"")["usage"]
    assert json.loads(counted.body or b"") == {"input_tokens": usage["input_tokens"]}


def test_embeddings_come_in_order() -> None:
    """One entry per input, counted together."""

    async def story() -> None:
        body = {"model": "text-embedding-3-small", "input": ["a b", "c"], "dimensions": 8}
        backend = simulator(FakeWorld())
        reply = await backend.infer(call_for(body, dialect=Dialect.OPENAI_EMBEDDINGS))
        told = json.loads(reply.body or b"")
        assert [entry["index"] for entry in told["data"]] == [0, 1]
        assert [len(entry["embedding"]) for entry in told["data"]] == [8, 8]
        assert told["usage"] == {"prompt_tokens": 3, "total_tokens": 3}

    asyncio.run(story())


def test_bounds_that_contradict_each_other_are_refused() -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match="min_tokens"):
        simulator(FakeWorld(), min_tokens=9, max_tokens=8)
    with pytest.raises(
        ConfigError, match=r"latency.gpt-4\*: no timing is named 'instnat'; did you"
    ):
        simulator(FakeWorld(), latency={"gpt-4*": "instnat"})


def test_known_models_are_listed_and_globs_are_not() -> None:
    """The catalogue by default."""

    async def story() -> None:
        assert list(await simulator(FakeWorld()).list_models()) == list(MODELS)
        assert await simulator(FakeWorld(), models=("a", "b-*")).list_models() == ["a"]

    asyncio.run(story())


def test_reset_and_refusal_are_not_a_close() -> None:
    """The reason says which; a reset in mid-stream comes after its tokens."""
    backend = simulator(FakeWorld(), strategy="fixed", text="a b c d e")
    for kind in (b"refuse", b"reset"):
        with pytest.raises(ConnectionCut) as told:
            backend.infer(call_for(forward=b"x-sim-fault: %b\r\n" % kind))
        assert told.value.reason == ConnectionCut.RESET
    sink, forward = Collected(), b"x-sim-fault: reset_after=2\r\n"
    stream_into(reply_of(backend, call_for(stream=True, forward=forward)), sink)
    (end,) = sink.ends
    assert isinstance(end, ConnectionCut)
    assert end.reason == ConnectionCut.RESET
    assert sink.text.count(b'"content":') == 1 + 2


@pytest.mark.parametrize("streamed", [False, True])
def test_slow_answer_is_late_by_what_is_said(streamed: bool) -> None:
    """Its own latency comes on top; and it can be given up while it waits."""
    world = FakeWorld()
    backend = simulator(world, first_token_ms=100)
    forward = b"x-sim-fault: slow; for=2\r\n"
    said = infer(backend, call_for(stream=streamed, forward=forward))
    world.advance(2.05)
    assert not said.done
    world.advance(0.06)
    assert said.value is not None
    given_up = infer(backend, call_for(stream=streamed, forward=forward))
    given_up.cancel()
    world.advance(5)
    assert isinstance(given_up.error, asyncio.CancelledError)


def test_hang_ends_when_it_says_or_with_a_cut() -> None:
    """And an error in a whole answer is that answer."""
    world = FakeWorld()
    backend = simulator(world)
    said = infer(backend, call_for(forward=b"x-sim-fault: hang; for=1\r\n"))
    never = infer(backend, call_for(stream=True, forward=b"x-sim-fault: hang\r\n"))
    world.advance(1.01)
    assert said.value is not None
    world.advance(600)
    assert isinstance(never.error, ConnectionCut)
    with pytest.raises(TpoError) as told:
        backend.infer(call_for(forward=b"x-sim-fault: error_after=1\r\n"))
    assert told.value.status == 500


def test_truncated_stream_ends_in_good_order() -> None:
    """But without its last events; a whole body is cut short."""
    backend = simulator(FakeWorld(), strategy="fixed", text="a b c d e")
    sink, forward = Collected(), b"x-sim-error: partial_response\r\n"
    stream_into(reply_of(backend, call_for(stream=True, forward=forward)), sink)
    assert sink.ends == [None]
    assert b"DONE" not in sink.text
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(reply_of(backend, call_for(forward=forward)).body or b"")


def test_written_slowly_it_says_the_same() -> None:
    """Piece by piece, as the loop and the timer turn."""

    async def story(order: bytes, text: str) -> list[bytes]:
        world, sink = FakeWorld(), Collected()
        backend = simulator(world, strategy="fixed", text=text)
        call = call_for(stream=True, forward=b"x-sim-fault: %b\r\n" % order)
        stream_into(reply_of(backend, call), sink)
        while not sink.ends:
            await asyncio.sleep(0)
            world.advance(0.06)
        assert sink.text.endswith(b"data: [DONE]\n\n")
        assert sink.text.count(b'"content":') == 1 + 4
        return sink.chunks

    assert max(map(len, asyncio.run(story(b"trickle; bytes=40", "a b c d")))) == 40
    pieces = asyncio.run(story(b"split", "\u00e9 \u00e9 \u00e9 \u00e9"))
    with pytest.raises(UnicodeDecodeError):
        b"".join(piece for piece in pieces if b'"content":" ' in piece).decode()
    events = [
        chunk.count(b"\n\n") for chunk in asyncio.run(story(b"coalesce; events=3", "a b c d"))
    ]
    assert events[:-1] == [3] * (len(events) - 1)


def test_wrong_usage_is_wrong_whole_and_streamed() -> None:
    """Its parts do not make its total."""
    backend = simulator(FakeWorld())
    forward = b"x-sim-fault: wrong_usage\r\n"
    body = json.loads(reply_of(backend, call_for(forward=forward)).body or b"")
    streamed = call_for(stream=True, forward=forward, usage_wanted=True)
    event = next(e for e in delivered(reply_of(backend, streamed)) if e.get("usage"))
    for usage in (body["usage"], event["usage"]):
        assert usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"first_token_ms": 90_000}, {}),
        ({"token_ms": 60_000}, {}),
        ({}, {"forward": b"x-sim-fault: slow; for=9\r\n"}),
        ({"faults": ({"delay_ms": 9000},)}, {}),
        ({"rules": ({"reply": {"text": "a", "fault": "slow; for=9"}},)}, {}),
    ],
)
@pytest.mark.parametrize(
    ("dialect", "body", "kind"),
    [
        (Dialect.OPENAI_CHAT, chat("rivers", model="gpt-4o"), "server_error"),
        (Dialect.ANTHROPIC_MESSAGES, MESSAGES, "timeout_error"),
    ],
)
def test_what_takes_too_long_is_the_dialects_504(
    options: dict[str, Any], more: dict[str, Any], dialect: Dialect, body: dict[str, Any], kind: str
) -> None:
    """At its time and not before, whatever took so long."""
    world = FakeWorld()
    plain = {"name": "sim", "kind": "simulator", "request_timeout_s": 8.0, "strategy": "fixed",
             "text": "a b c"} | options  # fmt: skip
    made = FEATURE.build(msgspec.convert(plain, FEATURE.Config), world.env)
    said = made.infer(call_for(body, dialect=dialect, **more))
    assert isinstance(said, Promise)
    world.advance(7.9)
    assert not said.done
    world.advance(0.2)
    assert isinstance(said.error, TpoError)
    assert said.error.status == 504
    assert json.loads(said.error.body or b"")["error"]["type"] == kind
    world.advance(1000)


def test_a_stream_that_takes_too_long_ends_in_an_error() -> None:
    """After what was in time; one whose tokens are out is left to its client."""
    world = FakeWorld()
    backend = simulator(world, token_ms=3000, request_timeout_s=8, strategy="fixed", text="a b c d")
    slow, quick = (
        infer(backend, call_for(stream=True)),
        infer(backend, call_for(chat("x", model="gpt-4o", max_tokens=2), stream=True)),
    )
    world.advance(0.01)
    assert slow.value is not None
    assert quick.value is not None
    sink, later = Collected(), Collected()
    stream_into(slow.value, sink)
    for _ in range(4):
        world.advance(3)
    (end,) = sink.ends
    assert isinstance(end, TpoError)
    assert end.status == 504
    assert b'" c"' in sink.text
    assert b'" d"' not in sink.text
    world.advance(60)
    stream_into(quick.value, later)
    assert later.ends == [None]
