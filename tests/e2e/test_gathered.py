"""Unary calls to a backend that is asked for streams: the engine's own reply, a quick goodbye."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.dialects import FOUR, PLAIN, REPLIES, body, encode
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, chat
from tests.support.shards import WAYS, Way, ways
from tests.support.tiny_model import MlxServer
from tests.support.toml import ECHO, NO_CACHE, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import quickest, wait_for
from tpo_mp.dialects import support
from tpo_mp.dialects.translate import events_of

PROMPT_CANCEL_S = 0.05
TARGETS = {
    "openai_chat": ("/v1/chat/completions", "chat"),
    "openai_completions": ("/v1/completions", "completions"),
    "openai_responses": ("/v1/responses", "responses"),
    "anthropic_messages": ("/v1/messages", "messages"),
}
UNFIT = "The model produced output that does not match the expected peg-native format"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]


@dataclass(slots=True)
class Bench:
    """Two shards before a scripted upstream that is asked for streams, in each dialect."""

    gateway: Gateway
    upstream: Upstream
    ways: dict[str, Way]


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """One backend per dialect."""
    with Upstream() as upstream:
        config = NO_CACHE + NO_RETRIES + ECHO + backend("up", upstream.base_url, stream_unary=True)
        for name, (_, api) in TARGETS.items():
            config += section(
                "[[backends]]", name=name, kind=name.partition("_")[0], apis=[api],
                base_url=upstream.base_url, models=[name], stream_unary=True,
            )  # fmt: skip
        with Gateway(short_tmp / "gathered", config=config, workers=2) as gateway:
            yield Bench(gateway, upstream, ways(gateway.url))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, bench: Bench) -> Way:
    """Each of the four ways in turn."""
    bench.upstream.play()
    found: Way = bench.ways[request.param]
    return found


@pytest.fixture(scope="module")
def engine(mlx: MlxServer, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway that asks one engine in both manners."""
    to = {"whole": mlx.model, "gathered": mlx.model}
    config = NO_CACHE + "".join(
        backend(name, mlx.base_url, model_map={name: to[name]}, stream_unary=name == "gathered")
        for name in to
    )
    with Gateway(short_tmp / "gathered-engine", config=config) as gateway:
        yield gateway


def same(gateway: Gateway, target: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The engine's reply, which must not depend on the manner; id and time are each call's own."""
    told = []
    for name in ("whole", "gathered", "whole"):  # the engine's own cache is warm for the last two
        with RawClient(gateway.url, timeout_s=60) as client:
            reply = client.post_json(target, asked | {"model": name})
        assert reply.status == 200, reply
        assert reply.headers["content-type"] == "application/json"
        shown = reply.json()
        assert shown.pop("id")
        assert shown.pop("created")
        told.append(shown)
    assert told[1] == told[2]
    found: dict[str, Any] = told[1]
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_engines_chat_is_the_same_in_both_manners(engine: Gateway, seed: int) -> None:
    """Words, stop reason, usage and every other field, for the same seed."""
    asked = chat("tell me a story", max_tokens=24, temperature=0.9, seed=seed)
    shown = same(engine, "/v1/chat/completions", asked)
    assert shown["choices"][0]["message"]["content"]
    assert shown["object"] == "chat.completion"
    assert shown["usage"]["completion_tokens"] > 0
    assert shown["choices"][0]["finish_reason"] in ("length", "stop")


def test_engines_tools_probabilities_and_legacy_replies_are_the_same(engine: Gateway) -> None:
    """With tools offered, with log probabilities asked for, and as legacy completions."""
    more = {"max_tokens": 12, "temperature": 0, "seed": 3}
    same(engine, "/v1/chat/completions", chat("weather?", tools=TOOLS, **more))
    shown = same(engine, "/v1/chat/completions", chat("odds?", logprobs=True, **more))
    assert shown["choices"][0]["logprobs"]["content"]
    shown = same(engine, "/v1/completions", {"prompt": "once upon", **more})
    assert shown["object"] == "text_completion"
    assert shown["choices"][0]["text"]


@pytest.mark.parametrize("name", FOUR)
def test_every_dialect_is_gathered(bench: Bench, name: str) -> None:
    """The upstream is asked for a stream, the client has a whole reply of its dialect."""
    codec = support.codec(name)
    meant = codec.reply_to_canonical(body(REPLIES[name]))
    text = encode(name, events_of(meant))
    events = tuple(event + b"\n\n" for event in text.split(b"\n\n") if event)
    bench.upstream.queue("answer", events=events)
    reply = bench.gateway.ask(TARGETS[name][0], PLAIN[name] | {"model": name})
    assert reply.status == 200, reply
    shown = codec.reply_to_canonical(reply.body)
    assert [b.text for b in shown.choices[0].blocks] == ["Hi there"]  # type: ignore[union-attr]
    assert shown.usage == meant.usage
    sent = bench.upstream.seen[-1].json()
    assert sent["stream"] is True
    assert sent.get("stream_options") == (
        {"include_usage": True} if name in ("openai_chat", "openai_completions") else None
    )


def test_gathered_reply_is_translated_like_any_other(bench: Bench) -> None:
    """A client of another dialect sees no difference."""
    bench.upstream.queue("answer", text="for a stranger")
    reply = bench.gateway.ask("/v1/messages", PLAIN["anthropic_messages"] | {"model": "up"})
    assert reply.json()["content"] == [{"type": "text", "text": "for a stranger"}]
    assert reply.json()["usage"]["input_tokens"] == 7


def test_what_a_model_wrote_blames_no_server_in_a_stream_either(bench: Bench) -> None:
    """llama.cpp's word for it, read by a client or gathered; any other error is the server's."""
    delta = {"index": 0, "delta": {"content": "well"}, "finish_reason": None}
    first = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up",
             "choices": [delta]}  # fmt: skip

    def ends_with(said: str) -> None:
        events = (first, {"error": {"code": 500, "type": "server_error", "message": said}})
        lines = tuple(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
        bench.upstream.queue("answer", events=lines)

    def failures() -> int:
        return int(bench.gateway.ask("/api/v1/providers/up").json()["failures"])

    target, before = TARGETS["openai_chat"][0], failures()
    ends_with(UNFIT)
    reply = bench.gateway.ask(target, chat("whole", "up"))
    assert (reply.status, reply.json()["error"]["code"]) == (502, "unfit_output")
    assert UNFIT in reply.json()["error"]["message"]
    ends_with(UNFIT)
    assert UNFIT.encode() in bench.gateway.ask(target, chat("streamed", "up", stream=True)).body
    assert failures() == before
    ends_with("out of memory")
    assert bench.gateway.ask(target, chat("broken", "up")).status == 502
    assert failures() == before + 1


@pytest.mark.parametrize("mode", ["cut", "no_done", "stream_error", "malformed_sse", "html"])
def test_stream_that_breaks_is_an_error_and_no_part_of_an_answer(
    bench: Bench, way: Way, mode: Any
) -> None:
    """502, as for any bad reply."""
    bench.upstream.queue(mode)
    reply = way.ask(chat("x", "up"))
    assert reply.status == 502, reply
    assert set(reply.json()) == {"error"}


def test_refusal_passes_as_it_came(bench: Bench, way: Way) -> None:
    """The stream that was asked for instead changes nothing about a 400."""
    said = {"error": {"message": "no", "type": "invalid_request_error", "param": "x", "code": "y"}}
    bench.upstream.queue("status", status=400, reply=said)
    reply = way.ask(chat("x", "up"))
    assert (reply.status, reply.json()) == (400, said)


@pytest.mark.parametrize("moment", ["waiting", "gathering"])
def test_client_that_leaves_reaches_the_engine(bench: Bench, way: Way, moment: str) -> None:
    """Before and after the upstream's first event: the fastest of some within 50 ms."""
    counters = bench.upstream.counters
    mode = {"waiting": "hang", "gathering": "hang_body"}[moment]

    def cancelled_s() -> float:
        wait_for(lambda: counters.open == 0, 5, "nothing open")
        aborted, sent = counters.aborted, counters.sent_bytes
        with way.open() as client:
            asked = chat("bye", "up", metadata={"upstream": {"mode": mode}})
            client.send(way.request(client, asked))
            wait_for(lambda: counters.open == 1, 5, "the call upstream")
            if moment == "gathering":
                wait_for(lambda: counters.sent_bytes > sent + 300, 5, "events")
        left_at = time.monotonic()
        wait_for(partial(_aborted, bench, aborted + 1), 2, "cancelled", every_s=0.001)
        return time.monotonic() - left_at

    took = quickest(cancelled_s, 5, PROMPT_CANCEL_S)
    print(f"{way.place} {way.lane} {moment}: {[round(t * 1e3, 1) for t in took]} ms")


def _aborted(bench: Bench, number: int) -> bool:
    return bench.upstream.counters.aborted >= number
