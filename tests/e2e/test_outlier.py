"""A backend that is worse than its neighbours, before a gateway of two workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import chat
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
NAMES = ("one", "two", "three")
EJECT_S = 6


@dataclass(slots=True)
class Bench:
    """Two workers, three upstreams, one route; ``sessions`` are served by one worker each."""

    gateway: Gateway
    upstreams: dict[str, Upstream]
    sessions: tuple[str, str]

    def ask(self, times: int = 12) -> list[int]:
        """So many calls, half of them on each worker."""
        return [
            self.gateway.ask(CHAT, chat("hi", "m"), {"x-session-id": self.sessions[n % 2]}).status
            for n in range(times)
        ]

    def asked(self) -> dict[str, int]:
        """How many requests each upstream has seen."""
        return {name: up.counters.requests for name, up in self.upstreams.items()}

    def out(self) -> dict[str, Any]:
        """Who is left out, and why."""
        found = self.gateway.ask("/api/v1/providers").json()["providers"]
        return {p["name"]: p["ejected"] for p in found if p["ejected"]}

    def wait_out(self, *names: str) -> dict[str, Any]:
        """Ask on until these are left out; answers why each is."""
        out: dict[str, Any] = {}

        def seen() -> bool:
            nonlocal out
            self.ask()
            out = self.out()
            return set(out) == set(names)

        wait_for(seen, 30, f"{names} to be left out")
        return out


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """Short intervals, and no stage but the one that is tested."""
    with ExitStack() as made:
        upstreams = {name: made.enter_context(Upstream()) for name in NAMES}
        config = (
            section("[pipeline]", stages=["outlier"])
            + section("[stages.outlier]", interval_s=1, min_tries=4, eject_s=EJECT_S,
                      slow_floor_s=0.05, max_share=0.9)
            + ECHO
            + "".join(backend(name, up.base_url, "m") for name, up in upstreams.items())
            + section("[[routes]]", models=["m"], strategy="weighted", backends=list(NAMES))
            + section("[[routes]]", models=["echo"], strategy="weighted", backends=["echo"])
        )  # fmt: skip
        gateway = made.enter_context(Gateway(short_tmp / "outlier", config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, upstreams, sessions)


def test_the_bad_one_of_three_is_left_alone_and_comes_back(bench: Bench) -> None:
    """It is asked by no worker, also not by those that take the place of the dead; once it is well
    and its time is over it takes part again."""
    bench.wait_out()
    bench.upstreams["two"].play("status", status=500)
    assert bench.wait_out("two") == {"two": "failures"}
    before = bench.asked()
    old = bench.gateway.worker_pids()
    os.kill(old[0], signal.SIGKILL)
    statuses = bench.ask(2)

    def replaced() -> bool:
        slots = bench.gateway.status()["slots"]
        return all(s["state"] == "ready" and s["pid"] != old[0] for s in slots)

    wait_for(replaced, 30, "another worker", every_s=0.1)
    while bench.out():
        statuses += bench.ask(6)
        if len(statuses) >= 60:
            break
    after = bench.asked()
    # Its time may have been over in the last round.
    assert after["two"] - before["two"] <= 2
    assert statuses.count(502) <= 2
    bench.upstreams["two"].play()

    def back() -> bool:
        bench.ask(6)
        return bench.asked()["two"] > after["two"] + 5

    wait_for(back, 60, "its share of calls")
    assert all(asked > before[name] for name, asked in bench.asked().items())
    page = bench.gateway.metrics()
    assert metric(page, "tpo_outlier_ejections_total", backend="two", why="failures") >= 1


def test_the_slow_one_is_left_alone_and_of_all_bad_ones_one_stays(bench: Bench) -> None:
    """First by its time, then with a failing one beside it; the last one is asked, bad or not."""
    bench.wait_out()
    bench.upstreams["three"].play("answer", first_s=0.1)
    assert bench.wait_out("three") == {"three": "slow"}
    bench.upstreams["one"].play("status", status=500)
    bench.wait_out("one", "three")
    bench.upstreams["two"].play("status", status=500)
    before = bench.asked()
    statuses = bench.ask(12)
    assert set(statuses) <= {200, 502}
    assert bench.asked()["two"] > before["two"]
    for upstream in bench.upstreams.values():
        upstream.play()
