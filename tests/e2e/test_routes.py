"""Routes that go by load or session, before a gateway of two workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import ClosedEarlyError, RawClient, chat
from tests.support.shards import connect_to, session_on, shard_of
from tests.support.toml import ECHO, NO_CACHE, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
STRATEGIES = ("least_loaded", "resource_aware", "consistent_hash", "round_robin", "prefix")


@dataclass(slots=True)
class Bench:
    """Two workers, two upstreams that can hold their calls, a model for each strategy."""

    gateway: Gateway
    a: Upstream
    b: Upstream
    go_on: threading.Event
    held: list[threading.Thread] = field(default_factory=list)
    clients: list[RawClient] = field(default_factory=list)

    def hold(self) -> None:
        """Calls from now on stay under way."""
        self.go_on.clear()
        for upstream in (self.a, self.b):
            upstream.play(until=self.go_on)

    def open(self) -> tuple[int, int]:
        """Calls under way at each."""
        return self.a.counters.open, self.b.counters.open

    def begin(self, shard: int, model: str) -> None:
        """A call taken and served by that shard, which is under way when this returns."""
        before = sum(self.open())
        session = session_on(self.gateway.url, shard, "held")
        client = connect_to(self.gateway.url, shard)
        self.clients.append(client)

        def ask() -> None:
            # Its worker may be killed meanwhile.
            with suppress(OSError, ClosedEarlyError):
                client.post_json(CHAT, chat("hi", model), {"X-Session-Id": session})

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        self.held.append(thread)
        wait_for(lambda: sum(self.open()) == before + 1, 20, "the call to be under way")

    def release(self) -> None:
        """Let every call end."""
        self.go_on.set()
        for upstream in (self.a, self.b):
            upstream.play()
        for thread in self.held:
            thread.join(20)
        for client in self.clients:
            client.close()
        self.held.clear()
        self.clients.clear()
        wait_for(lambda: self.open() == (0, 0), 20, "the upstreams to be idle")

    def whole(self) -> bool:
        """Whether both workers serve sessions."""
        with RawClient(self.gateway.url) as client:
            return {shard_of(client, f"whole-{n}") for n in range(40)} == {0, 1}

    def answered_by(self, model: str, session: str = "") -> str:
        """Which backend answers a call."""
        headers = {"X-Session-Id": session} if session else {}
        reply = self.gateway.ask(CHAT, chat("hi", model), headers)
        assert reply.status == 200, reply
        return str(reply.headers["x-tpo-backend"])


@pytest.fixture(scope="module")
def shared(short_tmp: Path) -> Iterator[Bench]:
    """One gateway for all tests here."""
    with ExitStack() as made:
        a, b = made.enter_context(Upstream()), made.enter_context(Upstream())

        def route(model: str, *names: str, **options: Any) -> str:
            return section("[[routes]]", models=[model], backends=list(names), **options)

        config = (
            NO_CACHE
            + NO_RETRIES
            + ECHO
            + backend("a", a.base_url, "*")
            + backend("b", b.base_url, "*")
            + route("echo", "echo", strategy="weighted")
            + route("only-a", "a", strategy="weighted")
            + "".join(route(name, "a", "b", strategy=name) for name in STRATEGIES)
        )
        gateway = made.enter_context(Gateway(short_tmp / "routes", config=config, workers=2))
        yield Bench(gateway, a, b, threading.Event())


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """Nothing is under way, before and after."""
    shared.hold()
    shared.release()
    wait_for(shared.whole, 30, "both workers to serve")
    yield shared
    shared.release()


@pytest.mark.parametrize("strategy", ["least_loaded", "resource_aware"])
def test_a_worker_sees_what_the_other_has_under_way(bench: Bench, strategy: str) -> None:
    """Three calls of one worker keep a backend busy; those of the other go to its neighbour.

    A worker that counted only its own calls would give each backend the same.
    """
    bench.hold()
    for _ in range(3):
        bench.begin(0, "only-a")
    assert bench.open() == (3, 0)
    for _ in range(3):
        bench.begin(1, strategy)
    assert bench.open() == (3, 3)
    for shard in (0, 1):
        with connect_to(bench.gateway.url, shard) as client:
            told = client.request("GET", "/api/v1/load-balancer/stats").json()
        assert {n: told["by_endpoint"][n]["in_flight"] for n in "ab"} == {"a": 3, "b": 3}


def test_what_a_killed_worker_had_under_way_is_forgotten(bench: Bench) -> None:
    """The backend that it kept busy is the idle one at once when it is dead."""
    bench.hold()
    bench.begin(1, "least_loaded")  # its sessions are known before anybody dies
    for _ in range(3):
        bench.begin(0, "only-a")
    before = bench.gateway.status()["slots"][0]["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(
        lambda: (
            (now := bench.gateway.status()["slots"][0])["pid"] not in (None, before)
            and now["state"] == "ready"
        ),
        30,
        "the worker to be replaced",
    )
    wait_for(lambda: sum(bench.open()) <= 1, 20, "the killed worker's calls to be gone")
    first = bench.open()
    for _ in range(3):
        bench.begin(1, "least_loaded")
    assert sorted(bench.open()) == [2, 2], first


def test_a_session_keeps_its_backend_whoever_serves_it(bench: Bench) -> None:
    """On the ring of every worker, also of one that was not there when the session began."""
    sessions = [f"sticky-{n}" for n in range(12)]
    homes = {s: bench.answered_by("consistent_hash", s) for s in sessions}
    assert set(homes.values()) == {"a", "b"}
    os.kill(bench.gateway.status()["slots"][1]["pid"], signal.SIGKILL)
    assert {s: bench.answered_by("consistent_hash", s) for s in sessions} == homes


def test_turns_are_taken_on_every_worker(bench: Bench) -> None:
    """Neither worker sends all its calls to one backend."""
    for shard in (0, 1):
        session = session_on(bench.gateway.url, shard, "turns")
        found = [bench.answered_by("round_robin", session) for _ in range(4)]
        assert found in (["a", "b"] * 2, ["b", "a"] * 2)


def test_a_beginning_is_known_to_both_workers_and_outlives_one(bench: Bench) -> None:
    """Ten conversations without a session, whose turns come to one worker, the other, a new one.

    A worker that knew only what it sent itself would find each by luck.
    """
    talks = [f"conversation {n}: " + "words " * 600 for n in range(10)]

    def turn(number: int, shard: int) -> list[str]:
        with connect_to(bench.gateway.url, shard) as client:
            replies = [
                client.post_json(CHAT, chat(talk + "and so on " * 200 * number, "prefix"))
                for talk in talks
            ]
        assert {(r.status, r.headers["x-tpo-shard"]) for r in replies} == {(200, str(shard))}
        return [str(reply.headers["x-tpo-backend"]) for reply in replies]

    homes = turn(0, 0)
    assert set(homes) == {"a", "b"}
    assert turn(1, 1) == homes
    os.kill(bench.gateway.status()["slots"][0]["pid"], signal.SIGKILL)
    wait_for(bench.whole, 30, "both workers to serve")
    assert turn(2, 0) == homes
