"""Near questions to a running gateway: answered by any worker, never a wrong one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway, ask_sure
from tests.support.raw import RawClient
from tests.support.shards import each_shard
from tests.support.toml import NO_RETRIES, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ASKED = "What is the capital of {}?"


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers, and what ships beside the stage."""
    config = backend("up", origin.base_url, "*") + NO_RETRIES + "[stages.near_dedup]\n"
    with Gateway(short_tmp / "near", config=config, workers=2) as running:
        yield running


def test_both_workers_answer_near_questions_as_one_did(gateway: Gateway, origin: Upstream) -> None:
    """One upstream call; whole and streamed, counted and recorded; the first worker may be dead."""
    with each_shard(gateway.url, model="up-1") as clients:
        answered_alike(gateway, origin, clients)


def answered_alike(
    gateway: Gateway, origin: Upstream, clients: tuple[RawClient, RawClient]
) -> None:
    """Ask nearly the same through both by turns, then kill the one that asked upstream."""
    before = origin.counters.requests
    first = ask_sure(gateway, ASKED.format("Spain"))
    assert first.headers["x-tpo-cache"] == "miss"
    said = first.json()["choices"][0]["message"]["content"]
    spellings = [
        "what is the capital of Spain",
        "What is  the capital of Spain",
        "What is the capital of Spain!",
    ]
    told = [ask_sure(gateway, text, through=clients[n % 2])
            for n, text in enumerate(s for s in spellings for _ in range(6))]  # fmt: skip
    assert {reply.headers["x-tpo-cache"] for reply in told} == {"semantic"}
    assert {reply.headers["x-tpo-shard"] for reply in told} == {"0", "1"}
    assert {reply.json()["choices"][0]["message"]["content"] for reply in told} == {said}
    assert len({reply.json()["id"] for reply in [first, *told]}) == 19
    streamed = ask_sure(gateway, spellings[0], stream=True)
    assert streamed.headers["x-tpo-cache"] == "semantic"
    deltas = [json.loads(e)["choices"] for e in streamed.events if e != b"[DONE]"]
    assert "".join(c[0]["delta"].get("content") or "" for c in deltas if c) == said
    assert origin.counters.requests == before + 1
    assert gateway.metric("orchestrator_dedup_semantic_hits_total") == 19

    def recorded() -> bool:
        entries = gateway.ask("/api/v1/audit?limit=100").json()["entries"]
        return sum(entry["cache"] == "semantic" for entry in entries) == 19

    wait_for(recorded, 10, "the records of all calls")
    slot = int(first.headers["x-tpo-shard"])
    old = gateway.worker_pids()[slot]
    os.kill(old, signal.SIGKILL)
    gateway.replaced(slot, old)
    assert ask_sure(gateway, spellings[0]).headers["x-tpo-cache"] == "semantic"


@pytest.mark.parametrize(
    ("one", "other", "more"),
    [
        ("Is the year 2023 over?", "Is the year 2024 over?", {}),
        ("Do I need it?", "Don't I need it?", {}),
        ("Where is Rome?", "where is rome", {}),
        ("Who is it?", "who is it", {"max_tokens": 7}),
        ("Who was it?", "who was it", {"temperature": 1}),
    ],
)
def test_other_questions_are_asked(
    gateway: Gateway, origin: Upstream, one: str, other: str, more: dict[str, Any]
) -> None:
    """However near their words are."""
    before = origin.counters.requests
    ask_sure(gateway, one)
    assert ask_sure(gateway, other, **more).headers.get("x-tpo-cache") != "semantic"
    assert origin.counters.requests == before + 2


def test_a_client_may_want_its_own_answer(gateway: Gateway, origin: Upstream) -> None:
    """By a header; and another dialect has its own."""
    before = origin.counters.requests
    ask_sure(gateway, ASKED.format("Peru"))
    near = "what is the capital of Peru"
    for wish in ("no-store", "no-cache"):
        reply = ask_sure(gateway, near, {"x-tpo-cache": wish})
        assert reply.headers.get("x-tpo-cache") != "semantic"
    assert origin.counters.requests == before + 3
