"""The providers of a running gateway: one truth over two workers, also when one of them is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat
from tests.support.raw import ask as get
from tests.support.shards import connect_to, render, session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
PATH = "/api/v1/providers"
HELD_S = 4.2
"""Longer than a machine stands still, and between two of the times that latencies are told by."""


@dataclass(slots=True)
class Bench:
    """Two workers before one upstream; ``sessions`` are served by one worker each."""

    gateway: Gateway
    upstream: Upstream
    sessions: tuple[str, str]

    def ask(self, worker: int, model: str, **more: Any) -> RawReply:
        """One chat that a certain worker serves, unless it stands still: then the other does."""
        headers = {"x-session-id": self.sessions[worker]}
        return self.gateway.ask(CHAT, chat("hi", model, **more), headers)

    def shown(self, worker: int, name: str) -> dict[str, Any]:
        """A provider as a certain worker tells of it."""
        with connect_to(self.gateway.url, worker) as client:
            reply = client.request("GET", f"{PATH}/{name}")
            assert reply.status == 200, reply
            found: dict[str, Any] = reply.json()
            return found

    def both(self, name: str) -> dict[str, Any]:
        """The same from both workers, who must agree, of all that was answered before."""
        self.gateway.settle()
        one, two = self.shown(0, name), self.shown(1, name)
        assert one == two
        return one


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """A breaker that does not open, so that every try counts."""
    with ExitStack() as made:
        upstream = made.enter_context(Upstream())
        config = (
            section("[pipeline]", stages=["admission", "breaker"])
            + section("[stages.breaker]", threshold=50)
            + ECHO
            + backend("up", upstream.base_url, "up-*", "named")
            + backend("slow", upstream.base_url, max_concurrent=2)
        )
        gateway = made.enter_context(Gateway(short_tmp / "providers", config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, upstream, sessions)


def fault(**more: Any) -> dict[str, Any]:
    """What the upstream is to do with one request."""
    return {"upstream": {"mode": "status", "status": 500, **more}}


def test_it_counts_for_all_workers_and_outlives_them(bench: Bench) -> None:
    """Nine good and three bad tries on two workers, streams among them, then both are killed."""
    assert bench.both("up")["status"] == "unknown"
    for n in range(9):
        assert bench.ask(n % 2, "named", stream=n > 5).status == 200
    for n in range(3):
        assert bench.ask(n % 2, "up-x", metadata=fault()).status == 502
    assert bench.ask(0, "named", metadata=fault(status=422)).status == 422  # its client's fault
    seen = bench.both("up")
    assert (seen["successes"], seen["failures"], seen["success_rate"]) == (9, 3, 0.75)
    assert (seen["breaker"], seen["consecutive_failures"]) == ("closed", 3)
    assert (seen["status"], seen["last_error"]) == ("degraded", "upstream_error")
    assert seen["latency_ms"]["samples"] == 9
    assert {m["model"]: m["successes"] for m in seen["models"]} == {"named": 9, "*": 0}
    old = bench.gateway.worker_pids()
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        slots = bench.gateway.status()["slots"]
        return all(s["state"] == "ready" and s["pid"] not in old for s in slots)

    wait_for(replaced, 30, "other workers", every_s=0.1)
    assert bench.both("up") == seen
    assert bench.ask(1, "named").status == 200
    assert bench.both("up")["successes"] == 10


def test_latency_is_the_backends_own_and_places_are_the_hosts(bench: Bench) -> None:
    """Of four calls two wait for a place; what is timed is what the upstream took.

    Its time for the two that waited is less than they had to, also if the machine stands still.
    """
    clients = []
    go_on = threading.Event()
    bench.upstream.play(until=go_on)
    with ExitStack() as held:
        for n in range(4):
            client = held.enter_context(connect_to(bench.gateway.url, n % 2))
            headers = {"x-session-id": bench.sessions[n % 2]}
            clients.append((client, headers))
        for client, headers in clients:
            client.send(render(client.host, chat("hi", "slow"), headers, "fast"))
        wait_for(lambda: bench.upstream.counters.working == 2, 10, "two at the upstream")
        places = bench.shown(0, "slow")["places"]
        assert (places["in_use"], places["limit"]) == (2, 2)
        assert places["waiting"] > 0
        timer = threading.Timer(HELD_S, go_on.set)
        timer.start()
        for client, _ in clients:
            assert client.read_reply("POST").status == 200
    took = bench.both("slow")["latency_ms"]
    assert took["samples"] == 4
    assert took["p50"] < 1e3 * HELD_S < took["p95"], "without the wait for a place"
    wait_for(lambda: bench.shown(1, "slow")["places"]["in_use"] == 0, 10, "the places to be free")


def test_all_are_listed(bench: Bench) -> None:
    """In the order of the configuration; another name is nobody's."""
    told = bench.gateway.ask(PATH).json()
    assert [p["name"] for p in told["providers"]] == ["echo", "up", "slow"]
    assert [p["kind"] for p in told["providers"]] == ["echo", "openai", "openai"]
    assert bench.gateway.ask(f"{PATH}/nobody").status == 404


def test_health_and_the_balancers_page_agree_on_an_open_breaker(bench: Bench) -> None:
    """Both workers and the ops port say of the same backend that it is not healthy."""
    _turn(bench, "trip")
    try:
        stats = bench.gateway.ask("/api/v1/load-balancer/stats").json()
        assert (stats["unhealthy_count"], stats["by_endpoint"]["up"]["is_healthy"]) == (1, False)
        wells = {name: one["is_healthy"] for name, one in stats["by_endpoint"].items()}
        for url in (bench.gateway.url, bench.gateway.ops):
            told = get(url, "/health").json()["load_balancer_stats"]
            assert told["unhealthy_count"] == 1
            assert {n: one["is_healthy"] for n, one in told["by_endpoint"].items()} == wells
    finally:
        _turn(bench, "reset")


def _turn(bench: Bench, what: str) -> None:
    with RawClient(bench.gateway.url) as client:
        reply = client.request("POST", f"/api/v1/circuit-breakers/up/{what}")
    assert reply.status == 200, reply
