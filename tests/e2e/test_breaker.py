"""The breaker of a running gateway: one truth over two workers, one probe, and deaths between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import RawClient, RawReply, build, chat
from tests.support.raw import ask as get
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import free_port, wait_for

CHAT = "/v1/chat/completions"
OPEN_S, LONG_OPEN_S = 2, 120
"""How long what opened stays so: where its probes are judged, and where its refusals are."""


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

    def break_it(self, model: str, **more: Any) -> None:
        """Fail five times in a row, on both workers in turn."""
        statuses = [self.ask(n % 2, model, metadata=fault(), **more).status for n in range(5)]
        assert statuses == [502] * 5

    def post(self, path: str) -> RawReply:
        """An order without options."""
        return self.gateway.ask(path, {})

    def metric(self, name: str, **labels: str) -> float:
        """A series of the host."""
        return metric(self.gateway.metrics(), name, **labels)

    def wait_over(self) -> None:
        """Wait until what opened a moment ago may be probed; takes no permit."""
        at = monotonic() + OPEN_S
        wait_for(lambda: monotonic() >= at, 30, "the wait to be over")

    def kill_workers(self) -> None:
        """Kill both and wait for their successors."""
        old = self.gateway.worker_pids()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        self.replaced(old)

    def replaced(self, old: list[int]) -> None:
        """Wait until others serve in the place of these."""

        def done() -> bool:
            slots = self.gateway.status()["slots"]
            return all(s["state"] == "ready" and s["pid"] not in old for s in slots)

        wait_for(done, 30, "other workers", every_s=0.1)
        wait_for(self._at_home, 30, "every session at home", every_s=0.1)

    def _at_home(self) -> bool:
        """Sessions of a slot that was lost for long are others' until it is heard of again."""
        asked = [(n % 2, self.gateway.ask(CHAT, chat("hi", "echo"), {"x-session-id": name}))
                 for _ in range(4) for n, name in enumerate(self.sessions)]  # fmt: skip
        return all(reply.headers["x-tpo-shard"] == str(worker) for worker, reply in asked)


def fault(mode: str = "status", **more: Any) -> dict[str, Any]:
    """What the upstream is to do with one request."""
    return {"upstream": {"mode": mode, **({"status": 500} if mode == "status" else {}), **more}}


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """What opened stays open for longer than a machine stands still."""
    with started(short_tmp / "breaker", LONG_OPEN_S) as made:
        yield made


@pytest.fixture(scope="module")
def probing(short_tmp: Path) -> Iterator[Bench]:
    """Waits are short."""
    with started(short_tmp / "probing", OPEN_S) as made:
        yield made


@contextmanager
def started(folder: Path, open_s: float) -> Iterator[Bench]:
    """Permits do not lapse; of ``pair``'s two backends one is not there."""
    with ExitStack() as made:
        upstream = made.enter_context(Upstream())
        config = (
            section("[pipeline]", stages=["breaker"])  # no retry that would hide a failure
            + section("[stages.breaker]", open_s=open_s, permit_s=3600, probes=1, panic_share=0.5)
            + ECHO
            + backend("up", upstream.base_url, "up-*")
            + backend("slow", upstream.base_url, "slow-*")
            + backend("cut", upstream.base_url, "cut-*")
            + "".join(backend(f"of-{n}", upstream.base_url, "trio") for n in range(3))
            + backend("one", upstream.base_url, "pair")
            + backend("two", f"http://127.0.0.1:{free_port()}/v1", "pair", "other")
        )
        gateway = made.enter_context(Gateway(folder, config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, upstream, sessions)


def test_what_both_workers_saw_opens_it_for_both(bench: Bench) -> None:
    """Five failures in a row, some on each; then nobody asks the upstream.  It says how long."""
    opened = bench.metric("orchestrator_circuit_breaker_state_transitions_total", state="open")
    rejected = bench.metric("orchestrator_circuit_breaker_requests_rejected_total")
    bench.break_it("up-a")
    asked = bench.upstream.counters.requests
    refused = [bench.ask(n % 2, "up-a", stream=n > 3) for n in range(8)]
    assert [reply.status for reply in refused] == [503] * 8
    assert bench.upstream.counters.requests == asked
    error = refused[0].json()["error"]
    assert error["code"] == "circuit_open"
    assert "backend 'up' is failing" in error["message"]
    assert 1 <= int(refused[0].headers["retry-after"]) <= LONG_OPEN_S
    assert bench.ask(1, "up-b").status == 200, "another model of that backend is well"
    assert bench.metric("tpo_breaker_failures_total", breaker="up:up-a", fault="backend") == 5
    now = bench.metric("orchestrator_circuit_breaker_state_transitions_total", state="open")
    assert now == opened + 1
    assert bench.metric("orchestrator_circuit_breaker_requests_rejected_total") == rejected + 8


def test_a_hundred_mistakes_of_clients_open_nothing(bench: Bench) -> None:
    """The upstream's 4xx and 429, and clients that leave."""
    for status in (400, 404, 422, 429):
        for n in range(8):
            said = fault("status", status=status)
            assert bench.ask(n % 2, "up-c", metadata=said).status == status
    assert bench.ask(0, "up-c").status == 200


def test_streams_that_break_after_their_first_byte_open_it(bench: Bench) -> None:
    """The client has its 200 already."""
    for n in range(5):
        reply = bench.ask(n % 2, "cut-d", stream=True, metadata=fault("cut"))
        assert reply.status == 200
    assert bench.ask(1, "cut-d").status == 503


def test_one_probe_of_all_that_come(probing: Bench) -> None:
    """Sixteen calls on two workers when the wait is over: the upstream sees one of them."""
    probing.break_it("slow-a")
    probing.upstream.play("hang")
    try:
        probing.wait_over()
        before = probing.upstream.counters.requests
        with ExitStack() as held:
            clients = crowd(probing, held, "slow-a", 16)
            wait_for(lambda: readable(clients) == 15, 30, "all but one to be answered")
            answered = [client for client in clients if readable([client])]
            assert {client.read_reply("POST").status for client in answered} == {503}
            assert probing.upstream.counters.requests == before + 1
        # Whoever held the permit left; it is free again.
        wait_for(lambda: probing.upstream.counters.open == 0, 30, "the upstream to be let go")
    finally:
        probing.upstream.play()
    wait_for(lambda: probing.ask(1, "slow-a").status == 200, 30, "the next probe")
    assert probing.ask(0, "slow-a").status == 200


def test_deaths_of_workers_free_a_permit_and_forget_nothing(probing: Bench) -> None:
    """What was open is open to their successors, and what was probed may be probed again."""
    probing.break_it("slow-b")
    probing.upstream.play("hang")
    try:
        probing.wait_over()
        with ExitStack() as held:
            crowd(probing, held, "slow-b", 2)
            wait_for(lambda: probing.upstream.counters.open == 1, 30, "a probe")
            probing.kill_workers()
    finally:
        probing.upstream.play()
    probing.upstream.queue("status", 99, status=500)
    try:
        assert probing.ask(0, "slow-b").status == 502, "a probe at once, though no permit lapsed"
        for killed in (False, True):
            if killed:
                probing.kill_workers()
            # A probe is due when this took long; forgotten, it would let all of them pass.
            statuses = [probing.ask(n % 2, "slow-b").status for n in range(4)]
            assert sorted(statuses)[-3:] == [503] * 3, statuses
    finally:
        probing.upstream.forget()


def test_routes_skip_what_is_open(bench: Bench) -> None:
    """After five failures of the one that is not there, the other one serves everything."""
    statuses = [bench.ask(n // 2 % 2, "pair").status for n in range(20)]
    assert statuses.count(502) == 5
    assert statuses[-8:] == [200] * 8
    assert bench.ask(0, "other").status == 503, "unreachable is unreachable for every model"


def test_in_a_panic_all_of_a_route_are_asked(bench: Bench) -> None:
    """While two of three are open, on either worker; when all are, calls are refused."""
    names = [f"of-{n}" for n in range(3)]

    def asked() -> set[str]:
        replies = [bench.ask(n % 2, "trio") for n in range(12)]
        assert {reply.status for reply in replies} == {200}
        return {reply.headers["x-tpo-backend"] for reply in replies}

    def trip(name: str) -> None:
        assert bench.post(f"/api/v1/circuit-breakers/{name}:trio/trip").json()["status"] == "open"

    assert asked() == set(names)
    trip("of-0")
    assert asked() == set(names[1:]), "one of three is no panic"
    before = bench.metric("tpo_breaker_panics_total")
    trip("of-1")
    assert asked() == set(names)
    assert bench.metric("tpo_breaker_panics_total") >= before + 6
    trip("of-2")
    assert bench.ask(0, "trio").status == 503
    for name in names:
        bench.post(f"/api/v1/circuit-breakers/{name}:trio/reset")


def test_it_is_shown_tripped_and_reset_for_all_workers(bench: Bench) -> None:
    """On either port, by either worker; health says it is degraded, not that it is down."""
    path = "/api/v1/circuit-breakers/slow:slow-c"
    bench.break_it("slow-c")
    for _ in range(6):  # whichever worker answers
        assert bench.gateway.ask(path).json()["status"] != "closed"
    assert bench.metric("orchestrator_circuit_breaker_state", worker="slow:slow-c") > 0
    assert bench.post(f"{path}/trip").json()["status"] == "open"
    for page in (get(bench.gateway.ops, "/health"), bench.gateway.ask("/v1/health")):
        assert page.status == 200
        assert "breaker-slow:slow-c" in page.json()["degraded"]
        assert page.json()["circuit_breaker"]["failure_count"] >= 5
        assert page.json()["pipeline"]["circuit_breaker"]["is_open"] is False
    assert [bench.ask(n, "slow-c").status for n in (0, 1)] == [503, 503]
    assert bench.post(f"{path}/reset").json() == {"reset": ["slow:slow-c"], "count": 1}
    assert [bench.ask(n, "slow-c").status for n in (0, 1)] == [200, 200]
    shown = bench.gateway.ask(path).json()
    assert (shown["status"], shown["failed_total"], shown["successes"]) == ("closed", 5, 2)
    assert bench.post("/api/v1/circuit-breakers/echo/trip").status == 200
    assert [bench.ask(n, "echo").status for n in (0, 1)] == [503, 503]
    everything = bench.post("/v1/circuit-breaker/reset").json()
    assert {"echo", "echo:echo", "up", "one", "two"} <= set(everything["reset"])
    assert [bench.ask(n, "echo").status for n in (0, 1)] == [200, 200]


def test_an_outage_costs_the_upstream_a_handful_of_requests(short_tmp: Path, bench: Bench) -> None:
    """The shipped stages, retries and all, before an upstream that only fails: with sixty calls it
    sees what opens the breaker and one probe after each wait."""
    wait_s = 0.5
    config = ECHO + backend("down", bench.upstream.base_url)
    config += section("[stages.breaker]", open_s=wait_s)
    bench.upstream.play("status", status=500)
    try:
        with Gateway(short_tmp / "outage", config=config, workers=2) as gateway:
            sessions = [session_on(gateway.url, n) for n in (0, 1)]
            before, began = bench.upstream.counters.requests, monotonic()
            for n in range(60):
                headers = {"x-session-id": sessions[n % 2]}
                assert gateway.ask(CHAT, chat("hi", "down"), headers).status in (502, 503)
            elapsed_s = monotonic() - began
            asked = bench.upstream.counters.requests - before
    finally:
        bench.upstream.play()
    waits = [wait_s * 2**n for n in range(20)]
    probes = next(n for n in range(20) if sum(waits[: n + 1]) > elapsed_s)
    assert 5 <= asked <= 5 + probes


def crowd(bench: Bench, held: ExitStack, model: str, number: int) -> list[RawClient]:
    """Requests under way, half of them on each worker; nothing is read yet."""
    clients = [held.enter_context(RawClient(bench.gateway.url)) for _ in range(number)]
    for n, client in enumerate(clients):
        headers = {
            "Host": client.host,
            "Content-Type": "application/json",
            "X-Session-Id": bench.sessions[n % 2],
        }
        client.send(build("POST", CHAT, headers, json.dumps(chat("hi", model)).encode()))
    return clients


def readable(clients: list[RawClient]) -> int:
    """How many have an answer."""
    return len(connection.wait([c.sock for c in clients], 0))
