"""What a gateway does that was told of nothing but its backends: the shipped stages, each seen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Bench:
    """Two workers in front of one upstream; ``sessions`` are served by one worker each."""

    gateway: Gateway
    upstream: Upstream
    sessions: tuple[str, str]

    def ask(self, n: int, model: str) -> RawReply:
        """One chat, on each worker in turn."""
        headers = {"x-session-id": self.sessions[n % 2]}
        return self.gateway.ask(CHAT, chat("hi", model), headers)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """No section but those of backends."""
    with ExitStack() as made:
        upstream = made.enter_context(Upstream())
        config = (
            "# the breaker stays as it is shipped\n"
            + ECHO
            + "".join(backend(name, upstream.base_url) for name in ("flaky", "down"))
            + backend("narrow", upstream.base_url, max_concurrent=1)
        )
        gateway = made.enter_context(Gateway(short_tmp / "defaults", config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, upstream, sessions)


def test_a_failed_try_is_made_again(bench: Bench) -> None:
    """The client sees an answer, and that it took two."""
    bench.upstream.queue("status", status=503)
    reply = bench.ask(0, "flaky")
    assert (reply.status, reply.headers["x-tpo-attempts"]) == (200, "2")


def test_a_backend_that_only_fails_is_left_alone(bench: Bench) -> None:
    """By both workers, and it is told when to come back."""
    bench.upstream.play("status", status=500)
    try:
        statuses = [bench.ask(n, "down").status for n in range(8)]
        asked = bench.upstream.counters.requests
        refused = [bench.ask(n, "down") for n in range(4)]
    finally:
        bench.upstream.play()
    assert statuses[0] == 502
    assert [reply.status for reply in refused] == [503] * 4
    assert bench.upstream.counters.requests == asked
    assert {reply.json()["error"]["code"] for reply in refused} == {"circuit_open"}
    shown = bench.gateway.ask("/api/v1/providers/down").json()
    assert [(m["model"], m["failures"]) for m in shown["models"]] == [("down", 5)]


def test_more_calls_than_places_wait_for_theirs(bench: Bench) -> None:
    """One after the other, from both workers; the second says how long it waited."""
    both_here = threading.Event()
    bench.upstream.play("answer", until=both_here)
    depth = "orchestrator_queue_depth"
    replies: list[RawReply] = []
    try:
        callers = [
            threading.Thread(target=lambda n=n: replies.append(bench.ask(n, "narrow")))
            for n in range(2)
        ]
        for caller in callers:
            caller.start()
        wait_for(lambda: bench.gateway.metric(depth, stage="inference") == 1, 10, "one that waits")
        both_here.set()
        wait_for(lambda: len(replies) == 2, 20, "both answers")
        for caller in callers:
            caller.join()
    finally:
        both_here.set()
        bench.upstream.play()
    assert [reply.status for reply in replies] == [200, 200]
    waited = [float(reply.headers.get("x-tpo-queue-ms", 0)) for reply in replies]
    assert max(waited) > 0, "it stood in the queue of the host"
    assert bench.upstream.counters.max_working == 1
