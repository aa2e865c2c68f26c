"""A backend that falls silent is given up by what it usually needs, by all workers alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
FLOOR_S = 4.0
"""Longer than a machine stands still while it answers."""


@dataclass(slots=True)
class Bench:
    """Two workers in front of one upstream; ``sessions`` are served by one worker each."""

    gateway: Gateway
    upstream: Upstream
    sessions: tuple[str, str]

    def ask(self, n: int, model: str, *, stream: bool = False, **headers: str) -> RawReply:
        """One chat, on each worker in turn."""
        lines = {"x-session-id": self.sessions[n % 2]} | headers
        return self.gateway.ask(CHAT, chat("hi", model, stream=stream), lines)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """No stage but the one that is tested."""
    with ExitStack() as made:
        upstream = made.enter_context(Upstream())
        config = (
            section("[pipeline]", stages=["breaker", "timeout"])
            + section("[stages.breaker]", threshold=2)
            + section("[stages.timeout]", min_samples=20, floor_s=FLOOR_S)
            + ECHO
            + backend("up", upstream.base_url)
            + backend("new", upstream.base_url)
        )
        gateway = made.enter_context(Gateway(short_tmp / "timeout", config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, upstream, sessions)


def test_a_silent_backend_is_given_up_on_what_both_workers_learnt(bench: Bench) -> None:
    """Ten answers on each are enough for both, and for those that take their place; one that is
    not known yet is waited for, and a deadline that comes first is its own error."""
    for n in range(40):
        assert bench.ask(n, "up", stream=n >= 20).status == 200
    old = bench.gateway.worker_pids()
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        slots = bench.gateway.status()["slots"]
        return all(s["state"] == "ready" and s["pid"] not in old for s in slots)

    wait_for(replaced, 30, "other workers", every_s=0.1)
    bench.upstream.play("hang")
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            for reply in pool.map(lambda n: bench.ask(n, "up", stream=n >= 2), range(4)):
                assert (reply.status, reply.json()["error"]["code"]) == (504, "unusually_slow")
                assert time.monotonic() - began >= FLOOR_S
        wait_for(lambda: bench.upstream.counters.open == 0, 10, "the upstream to be let go")
        late = bench.ask(0, "up", **{"x-tpo-deadline-ms": "150"})
        assert (late.status, late.json()["error"]["code"]) != (504, "unusually_slow")
        unknown = bench.ask(0, "new", **{"x-tpo-deadline-ms": "1500"})
        assert unknown.json()["error"]["code"] != "unusually_slow"
    finally:
        bench.upstream.play()
    assert bench.ask(0, "up").status == 200, "two that were late open no breaker"
    shown = bench.gateway.ask("/api/v1/providers/up").json()
    assert (shown["successes"], shown["failures"]) == (41, 4)
    assert (shown["last_error"], shown["breaker"]) == ("unusually_slow", "closed")
    (model,) = shown["models"]
    assert model["learnt_timeout_secs"]["stream"] >= FLOOR_S
    assert model["learnt_timeout_secs"]["whole"] >= FLOOR_S
