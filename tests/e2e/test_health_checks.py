"""Backends that control asks whether they are well, before a gateway of two workers.

No stage is configured, so nothing but the checks takes a backend out of the choice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import ask as get
from tests.support.raw import chat
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Page, Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
PROVIDERS = "/api/v1/providers"
CHECK = {"enabled": True, "path": "/health", "interval_s": 0.1, "timeout_s": 1.5, "fall": 3}
METRICS = {"metrics_path": "/metrics", "metrics_every_s": 0.1}
IDLE = Page('vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting 0.0\n')
BUSY = Page(
    'vllm:num_requests_running{engine="0"} 7.0\nvllm:num_requests_waiting 2.0\n'
    "vllm:kv_cache_usage_perc 0.5\n"
)
WELL, ILL, LOADING = Page({"status": "ok"}), Page("no", 500), Page({"error": {}}, 503)


@dataclass(slots=True)
class Bench:
    """Two workers and two upstreams; ``sessions`` are served by one worker each."""

    gateway: Gateway
    one: Upstream
    two: Upstream
    sessions: tuple[str, str]

    def ask(self, model: str = "m") -> list[Any]:
        """Eight calls, half of them on each worker."""
        return [
            self.gateway.ask(CHAT, chat("hi", model), {"x-session-id": self.sessions[n % 2]})
            for n in range(8)
        ]

    def shares(self, model: str = "m") -> tuple[int, int]:
        """How many of eight calls each upstream got; all are answered."""
        before = self.one.counters.requests, self.two.counters.requests
        assert {reply.status for reply in self.ask(model)} == {200}
        return self.one.counters.requests - before[0], self.two.counters.requests - before[1]

    def state(self, name: str) -> str:
        """How a backend stands, as all pages tell."""
        shown = self.gateway.ask(f"{PROVIDERS}/{name}").json()
        return str(shown["state"])

    def stands(self, name: str, state: str) -> None:
        """Wait until it stands so."""
        wait_for(lambda: self.state(name) == state, 20, f"{name} {state}", every_s=0.05)

    def split(self, *shares: tuple[int, int]) -> None:
        """Wait until calls are shared so: routes look a hundred times a second."""
        wait_for(lambda: self.shares() in shares, 20, f"shares {shares}")


@pytest.fixture(scope="module")
def host(short_tmp: Path) -> Iterator[Bench]:
    """One gateway for all tests here."""
    with ExitStack() as made:
        one, two = made.enter_context(Upstream()), made.enter_context(Upstream())
        one.pages["/health"] = two.pages["/health"] = WELL
        config = (
            section("[pipeline]", stages=[])
            + ECHO
            + backend("one", one.base_url, "m", "alone", "busy", health=CHECK, **METRICS)
            + backend("two", two.base_url, "m", "busy", health=CHECK, **METRICS)
            + section("[[routes]]", models=["m"], strategy="round_robin", backends=["one", "two"])
            + section(
                "[[routes]]", models=["busy"], strategy="least_loaded", backends=["one", "two"]
            )
            + section("[[routes]]", models=["*"], strategy="weighted")
        )
        gateway = made.enter_context(Gateway(short_tmp / "health", config=config, workers=2))
        yield Bench(gateway, one, two, (session_on(gateway.url, 0), session_on(gateway.url, 1)))


@pytest.fixture
def bench(host: Bench) -> Bench:
    """Both upstreams are well and idle, and known to be."""
    host.one.pages["/metrics"] = host.two.pages["/metrics"] = IDLE
    host.one.pages["/health"] = host.two.pages["/health"] = WELL
    for name in ("one", "two"):
        host.gateway.ask(f"{PROVIDERS}/{name}/undrain", {})
        host.stands(name, "ready")
    host.split((4, 4))
    return host


def test_one_that_is_down_is_left_alone_by_all_and_comes_back(bench: Bench) -> None:
    """Every page says so; it outlives the worker that saw it and the control that found it."""
    bench.one.pages["/health"] = ILL
    bench.stands("one", "down")
    bench.split((0, 8))
    shown = bench.gateway.ask(f"{PROVIDERS}/one").json()
    assert (shown["status"], shown["state_reason"]) == ("unhealthy", "status")
    stats = bench.gateway.ask("/api/v1/load-balancer/stats").json()
    assert stats["unhealthy_count"] == 1
    assert (stats["by_endpoint"]["one"]["state"], stats["by_endpoint"]["one"]["is_healthy"]) == (
        "down", False,
    )  # fmt: skip
    assert {b["name"]: b["state"] for b in bench.gateway.status()["backends"]} == {
        "echo": "unknown", "one": "down", "two": "ready",
    }  # fmt: skip

    def told() -> bool:
        page = bench.gateway.metrics()
        return metric(page, "tpo_backend_state", backend="one") == 4

    wait_for(told, 10, "the metric")
    for url in (bench.gateway.url, bench.gateway.ops):
        assert "backend-one" in get(url, "/ready").json()["degraded"]
        health = get(url, "/health").json()
        assert (health["total_nodes"], health["healthy_nodes"]) == (1, 1)
        assert health["loaded_models"] == ["alone", "busy", "echo", "m"]
        assert health["cluster_load"] == 0
        told_here = health["load_balancer_stats"]
        # As the balancer's own page: what both workers tried, told by any of them and by control.
        assert told_here["total_requests"] == stats["total_requests"] > 0
        assert told_here["unhealthy_count"] == 1
        both = ("state", "is_healthy", "requests", "failures", "avg_latency_ms")
        assert told_here["by_endpoint"] == {
            name: {key: shown[key] for key in both} for name, shown in stats["by_endpoint"].items()
        }
        stands = {name: at["state"] for name, at in told_here["by_endpoint"].items()}
        assert stands == {"echo": "unknown", "one": "down", "two": "ready"}
    status = bench.gateway.status()
    control, worker = status["control"]["pid"], status["slots"][0]["pid"]
    os.kill(control, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)

    def replaced() -> bool:
        now = bench.gateway.status()
        berths = [now["control"], *now["slots"]]
        return all(b["state"] == "ready" and b["pid"] not in (control, worker) for b in berths)

    wait_for(replaced, 30, "another control and another worker", every_s=0.1)
    # On a crowded machine what the last control found may have grown old by now.
    bench.stands("one", "down")
    assert bench.shares() == (0, 8)
    bench.one.pages["/health"] = WELL
    bench.stands("one", "ready")
    bench.split((4, 4))


def test_where_all_are_down_they_are_asked_all_the_same(bench: Bench) -> None:
    """The checks may be wrong: what the backends say is what the client gets."""
    bench.one.pages["/health"], bench.two.pages["/health"] = ILL, LOADING
    bench.stands("one", "down")
    bench.stands("two", "starting")
    assert bench.shares() == (4, 4)


def test_what_refuses_the_key_is_up_and_what_does_not_answer_is_down(bench: Bench) -> None:
    """A status below 500 is an answer; silence and a closed port are none."""
    bench.one.pages["/health"] = Page("who are you?", 401)
    bench.two.pages["/health"] = Page("late", after_s=5)
    bench.stands("two", "down")
    assert bench.gateway.ask(f"{PROVIDERS}/two").json()["state_reason"] == "timeout"
    assert bench.state("one") == "ready"
    bench.split((8, 0))


def test_a_drained_one_gets_no_calls_on_any_worker(bench: Bench) -> None:
    """Also where there is no other; it is no fault, so nothing is degraded."""
    drained = bench.gateway.ask(f"{PROVIDERS}/one/drain", {})
    assert (drained.status, drained.json()["state"]) == (200, "draining")
    bench.split((0, 8))
    replies = bench.ask("alone")
    assert {reply.status for reply in replies} == {503}
    assert replies[0].json()["error"]["code"] == "backend_draining"
    assert replies[0].headers["retry-after"] == "5"
    wait_for(
        lambda: "backend-one" not in get(bench.gateway.url, "/ready").json()["degraded"],
        20, "what was down before to be told no more",
    )  # fmt: skip
    assert bench.gateway.ask(f"{PROVIDERS}/one/undrain", {}).json()["state"] == "ready"
    bench.split((4, 4))
    assert bench.gateway.ask(f"{PROVIDERS}/nobody/drain", {}).status == 404


def test_an_engine_that_others_keep_busy_is_left_to_them(bench: Bench) -> None:
    """What its own metrics say counts beside our calls, on both workers, as long as it says it."""
    assert bench.shares("busy") == (4, 4)
    bench.one.pages["/metrics"] = BUSY
    wait_for(lambda: bench.shares("busy") == (0, 8), 20, "everything at the idle one")

    def told() -> bool:
        page = bench.gateway.metrics()
        others = metric(page, "tpo_engine_requests", backend="one", state="others")
        return (others, metric(page, "tpo_engine_kv_usage", backend="one")) == (9, 0.5)

    wait_for(told, 10, "the metrics")
    bench.one.pages["/metrics"] = IDLE
    wait_for(lambda: bench.shares("busy") == (4, 4), 20, "even shares")


def test_one_host_asks_once_however_many_workers_it_has(bench: Bench) -> None:
    """Control asks in its own time: ten times a second here, give or take a tenth.

    After a machine stood still questions come late, and the next one in time.
    """

    def well_apart() -> bool:
        at = [r.at for r in bench.one.pages_asked if r.path == "/health"][-6:]
        return min(b - a for a, b in pairwise(at)) > 0.08

    first = len(bench.one.pages_asked)
    wait_for(
        lambda: len(bench.one.pages_asked) >= first + 20 and well_apart(), 20, "six well apart"
    )
