"""A stream whose backend dies in the middle is gone on with by another one, in the same reply.

Two workers; each call goes both ways through the host: served where it came in, and forwarded.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import Way, ways
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

PATIENT = {"connect_s": 20.0, "first_byte_s": 20.0, "idle_s": 20.0, "total_s": 60.0}
IDLE_S = 4.0
"""Longer than a machine stands still: a break is not taken for silence."""


@dataclass(slots=True)
class Bench:
    """One gateway and its two upstreams, in the order of the route."""

    gateway: Gateway
    one: Upstream
    two: Upstream
    ways: list[Way]

    def ask(self, **body: Any) -> list[RawReply]:
        """Ask for a stream both ways, one after the other."""
        return [way.ask(chat("count", "m", stream=True, **body)) for way in self.ways]

    def continued(self) -> float:
        """How many streams were gone on with."""
        return sum(
            self.gateway.metric("tpo_streams_continued_total", backend=name)
            for name in ("one", "two")
        )

    def refused(self, why: str) -> float:
        """How many were not, for that reason."""
        return self.gateway.metric("tpo_streams_not_continued_total", reason=why)


@pytest.fixture(scope="module")
def shared(short_tmp: Path) -> Iterator[Bench]:
    """Two workers and two upstreams that can be told to go on."""
    with ExitStack() as made:
        one, two = (made.enter_context(Upstream()) for _ in range(2))
        config = (
            section("[pipeline]", stages=["audit", "dedup", "continuation", "retry", "admission"])
            + section("[stages.audit]")
            + section("[stages.dedup]", match="all")
            + section("[stages.retry]", attempts=1)
            + section(
                "[stages.continuation]",
                backends={"one": "vllm", "two": "vllm"},
                max_characters=2000,
                budget_floor=1000,
            )
            + ECHO
            + backend("one", one.base_url, "*", timeouts=PATIENT | {"idle_s": IDLE_S})
            + backend("two", two.base_url, "*", timeouts=PATIENT, max_concurrent=1)
            + section("[[routes]]", models=["echo"], strategy="weighted", backends=["echo"])
            + section("[[routes]]", models=["*"], strategy="failover", backends=["one", "two"])
        )
        gateway = made.enter_context(Gateway(short_tmp / "continuation", config=config, workers=2))
        found = ways(gateway.url)
        yield Bench(gateway, one, two, [found["local-fast"], found["forwarded-fast"]])


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """The same, as if nothing had happened."""
    shared.one.forget()
    shared.two.forget()
    return shared


def words(reply: RawReply) -> str:
    """What a chat stream said."""
    events = [json.loads(event) for event in reply.events if event != b"[DONE]"]
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def entry_of(bench: Bench, reply: RawReply) -> dict[str, Any]:
    """The call's record."""
    call = reply.headers["x-tpo-call-id"]

    def found() -> list[dict[str, Any]]:
        listed = bench.gateway.ask(f"/api/v1/audit?request_id={call}").json()
        return listed["entries"]  # type: ignore[no-any-return]

    return wait_for(found, 10, "a record")[0]


@pytest.mark.parametrize("mode", ["cut", "no_done_early", "stream_error", "hang_body"])
def test_another_backend_goes_on(bench: Bench, mode: str) -> None:
    """One reply, no word twice or lost, one id, true counts, and one call beside the answer."""
    if mode == "no_done_early":
        first = b'data: {"id":"up","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
        bench.one.play("no_done", events=(first % b"one ", first % b"two ", b""))
    else:
        bench.one.play(mode, text="one two three ", chunks=4, cut_after=2)  # type: ignore[arg-type]
    bench.two.play(text="and the rest", chunks=3)
    before = bench.continued()
    for reply in bench.ask(max_tokens=100, stream_options={"include_usage": True}):
        assert words(reply) == "one two " + "and the rest", reply.body
        assert reply.body.count(b": continued by two\n\n") == 1
        events = [json.loads(event) for event in reply.events[:-1]]
        assert reply.events[-1] == b"[DONE]"
        assert not any("error" in event for event in events)
        assert len({event["id"] for event in events[2:]}) == 1
        usage = events[-1]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7 - 2, 3 + 2)
        assert usage["total_tokens"] == 10
        entry = entry_of(bench, reply)
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (5, 5)
        assert (entry["aside_tokens"], entry["attempts"]) == (7, 2)
        assert (entry["backend"], entry["terminal"]) == ("two", "done")
    asked = bench.two.seen[-1].json()
    assert asked["messages"][-1] == {"role": "assistant", "content": "one two "}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert asked["max_tokens"] == 98
    assert bench.continued() == before + 2


def test_a_killed_backend_and_a_killed_worker(bench: Bench) -> None:
    """Streams that are open when their backend dies end well; so do those of a new worker."""
    for victim in (False, True):
        if victim:
            pid = bench.gateway.worker_pids()[0]
            os.kill(pid, signal.SIGKILL)
            bench.gateway.replaced(0, pid)
        bench.one.play("endless", text="w", chunks=1, delay_s=0.01)
        bench.two.play(text="end", chunks=1)
        for way in bench.ways:
            with way.open() as client:
                client.send(way.request(client, chat(f"killed {victim}", "m", stream=True)))
                wait_for(lambda: bench.one.counters.open == 1, 5, "a stream that flows")
                bench.one.refuse()
                try:
                    reply = client.read_reply("POST")
                finally:
                    bench.one.accept()
            assert words(reply).strip("w") == "end", reply.body[-300:]
            assert reply.events[-1] == b"[DONE]"


def test_whoever_waits_for_a_place_to_go_on_may_leave(bench: Bench) -> None:
    """The place of the backend that goes on is taken; the client leaves, and nobody is asked."""
    bench.one.play("cut", text="one two three", chunks=3, cut_after=1)
    bench.two.play("hang")
    way = bench.ways[0]
    with way.open() as holds:
        holds.send(way.request(holds, chat("holds", "m", stream=True)))
        wait_for(lambda: bench.two.counters.open == 1, 5, "the place taken")
        with way.open() as waits:
            waits.send(way.request(waits, chat("waits", "m", stream=True)))
            depth = "orchestrator_queue_depth"
            wait_for(lambda: bench.gateway.metric(depth, stage="inference") == 1, 5, "one waits")
        wait_for(lambda: bench.gateway.metric(depth, stage="inference") == 0, 5, "nobody waits")
    wait_for(lambda: bench.two.counters.open == 0, 5, "nothing asked")
    assert len(bench.two.seen) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"n": 2}, "unsayable"),
        ({"response_format": {"type": "json_object"}}, "unsayable"),
        ({"tool_choice": "required"}, "unsayable"),
    ],
)
def test_what_cannot_be_continued_ends_as_ever(
    bench: Bench, body: dict[str, Any], why: str
) -> None:
    """The words that came, the error event, and no second backend."""
    bench.one.play("cut", text="one two three", chunks=3, cut_after=2)
    before = bench.refused(why)
    for reply in bench.ask(**body):
        assert json.loads(reply.events[-1])["error"]["code"] == "cut_off"
    assert bench.refused(why) == before + 2
    assert not bench.two.seen


def test_an_answer_that_is_there_or_too_long_is_not_continued(bench: Bench) -> None:
    """Only its end was missing; or more was said than is kept."""
    chunk = b'data: {"id":"up","choices":[{"index":0,"delta":{"content":"%b"}%b}]}\n\n'
    stop = b',"finish_reason":"stop"'
    for events, why in (
        ((chunk % (b"all", b""), chunk % (b"", stop), b""), "complete"),
        ((chunk % (b"x" * 1500, b""), chunk % (b"y" * 1500, b""), b""), "too_long"),
    ):
        bench.one.play("no_done", events=events)
        before = bench.refused(why)
        for reply in bench.ask():
            assert json.loads(reply.events[-1])["error"]["code"] == "truncated_stream"
        assert bench.refused(why) == before + 2
    assert not bench.two.seen


def test_all_that_go_on_break_too(bench: Bench) -> None:
    """Two are asked and no more, and the client keeps every word that came."""
    bench.one.play("cut", text="one two three", chunks=3, cut_after=1)
    bench.two.play("cut", text="1 2 3", chunks=5, cut_after=1)
    for reply in bench.ask():
        assert words(replace(reply, body=_before_error(reply))) == "one t1one t"
        assert json.loads(reply.events[-1])["error"]["code"] == "cut_off"
    assert len(bench.two.seen) == 2


def _before_error(reply: RawReply) -> bytes:
    return reply.body.rpartition(b"data: ")[0]


def test_anthropic_clients_are_gone_on_with_too(short_tmp: Path, bench: Bench) -> None:
    """In their own events, translated to the backend's dialect; blanks are not said twice."""
    config = (
        section("[stages.continuation]", backends={"one": "prefill", "two": "prefill"})
        + backend("one", bench.one.base_url, "*")
        + backend("two", bench.two.base_url, "*")
        + section("[[routes]]", models=["*"], strategy="failover", backends=["one", "two"])
    )
    bench.one.play("cut", text="one two three ", chunks=4, cut_after=2)
    bench.two.play(text=" and the rest", chunks=2)
    with (
        Gateway(short_tmp / "messages", config=config, workers=1) as gateway,
        RawClient(gateway.url) as client,
    ):
        reply = client.post_json("/v1/messages", chat("hi", "m", stream=True, max_tokens=50))
    events = [json.loads(event) for event in reply.events]
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    assert kinds == ["message_start", "content_block_start", "content_block_stop",
                     "message_delta", "message_stop"]  # fmt: skip
    said = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    assert said == "one two and the rest"
    assert bench.two.seen[-1].json()["messages"][-1]["content"] == "one two"
    assert bench.two.seen[-1].json()["max_tokens"] == 48
