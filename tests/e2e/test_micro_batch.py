"""Calls that begin alike are sent together, whichever of two workers serves them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, ask
from tests.support.toml import NO_CACHE, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("at_rest")
CHAT = "/v1/chat/completions"
SIZE = 4


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers; one backend is collected for, and by far not the time but the number counts."""
    config = section(
        "[stages.batch]", backends=["up"], max_batch_size=SIZE, max_wait_s=20,
        group_by_prefix_len=16, eager=False,
    )  # fmt: skip
    config += backend("up", origin.base_url, "up") + NO_CACHE
    config += backend("straight", origin.base_url, "straight")
    with Gateway(short_tmp / "micro", config=config, workers=2) as started:
        yield started


@pytest.fixture(scope="module")
def sessions(gateway: Gateway) -> tuple[str, str]:
    """One that each worker serves."""
    served: dict[str, str] = {}
    for n in range(64):
        reply = gateway.ask(CHAT, chat("hello", "straight"), {"X-Session-Id": f"session-{n}"})
        served.setdefault(reply.headers["x-tpo-shard"], f"session-{n}")
        if len(served) == 2:
            break
    return served["0"], served["1"]


def chat(text: str, model: str = "up") -> object:
    """A chat whose answer is not certain, so that it shares none."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


class Callers:
    """Clients that wait for their answers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pool = ThreadPoolExecutor(32)
        self.replies: list[Future[RawReply]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, text: str, session: str) -> None:
        """One more."""
        head = {"X-Session-Id": session}
        self.replies.append(self._pool.submit(ask, self._gateway.url, CHAT, chat(text), head))

    def statuses(self) -> Counter[int]:
        """How all of them were answered."""
        return Counter(reply.result(30).status for reply in self.replies)


def starts(origin: Upstream) -> list[str]:
    """The first words of what was asked, in order."""
    return [seen.json()["messages"][0]["content"].split()[0] for seen in origin.seen]


def pending(gateway: Gateway) -> float:
    """Calls that wait for others, of both workers."""
    return gateway.metric("orchestrator_batch_pending")


def sent(gateway: Gateway) -> float:
    """Calls that were sent by the stage, of both workers."""
    return gateway.metric("orchestrator_batch_requests_total")


def test_a_group_goes_when_both_workers_have_enough(
    gateway: Gateway, origin: Upstream, sessions: tuple[str, str]
) -> None:
    """And no other with it."""
    before = sent(gateway)
    with Callers(gateway) as callers:
        for n in range(SIZE - 1):
            callers.ask(f"lawyer, answer in a sentence: question {n}", sessions[n % 2])
            callers.ask(f"doctor, answer in a sentence: question {n}", sessions[n % 2])
        wait_for(lambda: pending(gateway) == 2 * (SIZE - 1), 20, "all to wait")
        assert starts(origin) == []
        callers.ask("lawyer, answer in a sentence: the last question", sessions[1])
        wait_for(lambda: len(origin.seen) == SIZE, 20, "the group")
        assert starts(origin) == ["lawyer,"] * SIZE
        assert pending(gateway) == SIZE - 1
        callers.ask("doctor, answer in a sentence: the last question", sessions[0])
        assert callers.statuses() == {200: 2 * SIZE}
    assert starts(origin)[SIZE:] == ["doctor,"] * SIZE
    assert sent(gateway) == before + 2 * SIZE


def test_backends_that_are_not_named_are_asked_at_once(gateway: Gateway, origin: Upstream) -> None:
    """Nobody waits there."""
    assert gateway.ask(CHAT, chat("hello", "straight")).status == 200
    assert len(origin.seen) == 1


def test_a_worker_that_dies_takes_no_others_call_along(
    gateway: Gateway, origin: Upstream, sessions: tuple[str, str]
) -> None:
    """Those that wait in the other one go when others come, whoever counted them before."""
    with Callers(gateway) as doomed, Callers(gateway) as callers:
        for n in range(SIZE - 1):
            (doomed if n == 1 else callers).ask(f"baker, answer briefly: {n}", sessions[n % 2])
        wait_for(lambda: pending(gateway) == SIZE - 1, 20, "all to wait")
        victim = gateway.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: gateway.worker_pids()[1] != victim, 20, "another in its place")
        wait_for(lambda: serves(gateway, sessions[1]), 20, "that to serve")
        for n in range(SIZE):
            before = (len(origin.seen), pending(gateway))
            callers.ask(f"baker, answer briefly: again {n}", sessions[0])
            wait_for(partial(moved, gateway, origin, before), 20, "it to wait or to go")
            wait_for(lambda: pending(gateway) < SIZE, 20, "a full group to go")
            if pending(gateway) == 0:
                break
        assert pending(gateway) == 0
        answered = [r.result(30).status for r in callers.replies if r.exception(30) is None]
    assert set(answered) == {200}
    assert len(answered) >= SIZE - 2, "those whose connection the dead one had are lost"


def serves(gateway: Gateway, session: str) -> bool:
    """Whether the second worker answers."""
    reply = gateway.ask(CHAT, chat("hello", "straight"), {"X-Session-Id": session})
    return (reply.status, reply.headers.get("x-tpo-shard")) == (200, "1")


def moved(gateway: Gateway, origin: Upstream, before: tuple[int, float]) -> bool:
    """Whether more was asked, or more waits."""
    return (len(origin.seen), pending(gateway)) != before
