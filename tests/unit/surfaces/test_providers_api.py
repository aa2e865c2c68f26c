"""How backends are shown: their numbers, and what state these come to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.config import load
from tpo_mp.pipeline.attribution import Blame
from tpo_mp.pipeline.breaker_rows import BreakerRow, BreakerRows
from tpo_mp.pipeline.circuit import Rules, failed
from tpo_mp.pipeline.loads import Loads
from tpo_mp.pipeline.usual_times import times_of
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.surfaces.providers_api import FEATURE

RULES = Rules(5, 60.0, 1, 0.8, 30.0)
TABLES: dict[str, Any] = {
    "backends": [
        {"name": "a", "kind": "echo", "models": ["m", "n"], "max_concurrent": 4},
        {"name": "b", "kind": "echo", "models": ["*"]},
    ]
}


class Board:
    """The surface, and another process that counts."""

    def __init__(self, arena: MetricsArena, **tables: Any) -> None:
        config = load.build({**TABLES, **tables}, {}, {}, None)
        self.surface = Surface(FEATURE, metrics_arena=arena, config=config)
        self.world = self.surface.world
        self.now = self.world.now
        self._other = self.world.scores.seat(1)

    def tries(self, name: str, good: int, bad: int = 0, took_s: float = 0.3) -> None:
        """Count in the name of another process."""
        score = self._other.of(name)
        assert score is not None
        for _ in range(good):
            score.good(took_s, self.world.now)
        for _ in range(bad):
            score.bad("upstream_error", self.world.now)

    def get(self, target: str = "") -> Any:
        """What a page says."""
        return self.surface.ask("GET", "/api/v1/providers" + target).json()


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """Nobody's metrics."""
    made = MetricsArena.create(2)
    yield made
    made.close()


def test_a_provider_nobody_asked_is_unknown(arena: MetricsArena) -> None:
    """All of the config are listed, with nothing made up."""
    told = Board(arena).get()
    assert (told["count"], [p["name"] for p in told["providers"]]) == (2, ["a", "b"])
    first = told["providers"][0]
    assert (first["status"], first["breaker"], first["consecutive_failures"]) == (
        "unknown", "closed", 0,
    )  # fmt: skip
    assert first["success_rate"] is first["last_error"] is first["last_success_at"] is None
    assert first["latency_ms"] == {"samples": 0, "p50": None, "p95": None, "p99": None}
    assert first["places"] == {"in_use": 0, "limit": 4, "waiting": 0}
    assert told["providers"][1]["places"] == {"in_use": None, "limit": None, "waiting": 0}


def test_numbers_are_those_of_the_last_hour_and_of_all_processes(arena: MetricsArena) -> None:
    """A provider's are those of its models together."""
    board = Board(arena)
    board.tries("a:m", 100, 100)
    board.world.now += 2 * 3600
    board.tries("a:m", 95, 5)
    board.tries("a:n", 5, took_s=5.0)
    board.tries("b:*", 1)
    told = board.get("/a")
    assert (told["successes"], told["failures"], told["success_rate"]) == (100, 5, 0.9524)
    assert told["status"] == "healthy"
    assert told["last_error"] == "upstream_error"
    assert told["last_failure_at"] == told["last_success_at"]
    assert told["last_success_at"].startswith("20")
    assert told["latency_ms"]["samples"] == 100
    assert 250 < told["latency_ms"]["p50"] < 400
    assert 4000 < told["latency_ms"]["p99"] < 6500
    by_model = {m["model"]: (m["successes"], m["failures"]) for m in told["models"]}
    assert by_model == {"m": (95, 5), "n": (5, 0)}
    assert [m["model"] for m in board.get("/b")["models"]] == ["*"]


def test_states(arena: MetricsArena) -> None:
    """Shut, partly shut, or just bad."""
    board = Board(arena)
    board.tries("a:m", 50, 1)
    board.tries("b:*", 8, 2)
    assert {p["name"]: p["status"] for p in board.get()["providers"]} == {
        "a": "healthy", "b": "degraded",
    }  # fmt: skip
    rows = BreakerRows(board.world.env)

    def shut(name: str, fault: Blame) -> None:
        for _ in range(5):
            rows.change(BreakerRow(name, fault, False), lambda c: failed(c, RULES, board.now))

    shut("a:m", Blame.BACKEND)
    told = board.get("/a")
    assert (told["status"], told["breaker"], told["consecutive_failures"]) == (
        "degraded", "closed", 5,
    )  # fmt: skip
    shut("a", Blame.NETWORK)
    told = board.get("/a")
    assert (told["status"], told["breaker"]) == ("unhealthy", "open")


def test_without_a_breaker_there_is_none_to_tell_of(arena: MetricsArena) -> None:
    """One that only fails is unhealthy all the same."""
    board = Board(arena, pipeline={"stages": []})
    board.tries("a:m", 0, 10)
    told = board.get("/a")
    assert (told["status"], told["breaker"], told["consecutive_failures"]) == (
        "unhealthy", None, None,
    )  # fmt: skip


def test_learnt_timeouts_are_those_of_the_stage(arena: MetricsArena) -> None:
    """By what all processes saw, for streams and whole replies apart; null before and without."""
    board = Board(arena, stages={"timeout": {"min_samples": 20, "floor_s": 0.1}})
    board.tries("a:m", 30)
    board.tries(times_of("a:m", stream=True), 30, took_s=2.0)
    board.tries(times_of("a:m", stream=False), 19)
    board.tries(times_of("b:*", stream=True), 30)
    shown = {m["model"]: m["learnt_timeout_secs"] for m in board.get("/a")["models"]}
    assert 3.0 < shown["m"].pop("stream") < 6.0
    assert shown == {"m": {"whole": None}, "n": {"stream": None, "whole": None}}
    (other,) = board.get("/b")["models"]
    assert other["learnt_timeout_secs"] == {"stream": None, "whole": None}
    board = Board(arena, pipeline={"stages": []})
    board.tries("a:m", 30)
    board.tries(times_of("a:m", stream=True), 30, took_s=2.0)
    (first, _) = board.get("/a")["models"]
    assert first["learnt_timeout_secs"] == {"stream": None, "whole": None}


def test_what_is_not_there_is_404(arena: MetricsArena) -> None:
    """It names the part of the path."""
    error = Board(arena).surface.refusal("GET", "/api/v1/providers/nobody")
    assert (error.status, error.reason, error.param) == (404, "provider_not_found", "provider")


def test_the_balancers_numbers_are_the_hosts(arena: MetricsArena) -> None:
    """Tries of another process count, and so does what it has under way where a route asks."""
    balanced = {"routes": [{"models": ["*"], "strategy": "least_loaded", "backends": ["a", "b"]}]}
    board = Board(arena, pipeline={"stages": ["retry"]}, **balanced)
    board.tries("a:m", good=6, bad=2, took_s=0.3)
    board.tries("b:*", good=0, bad=3)
    Loads(board.world.env.shares.other(1)).of("a").enter()  # type: ignore[attr-defined]
    told = board.surface.ask("GET", "/api/v1/load-balancer/stats").json()
    assert (told["total_requests"], told["unhealthy_count"]) == (11, 1)
    a, b = told["by_endpoint"]["a"], told["by_endpoint"]["b"]
    assert (a["requests"], a["failures"], a["in_flight"]) == (8, 2, 1)
    assert 200 < a["avg_latency_ms"] < 400
    assert (b["requests"], b["failures"], b["avg_latency_ms"]) == (3, 3, None)
    assert (a["is_healthy"], b["is_healthy"]) == (True, False)
    board.world.advance(1)
    board.tries("b:*", good=1)
    told = board.surface.ask("GET", "/api/v1/load-balancer/stats").json()
    assert told["by_endpoint"]["b"]["is_healthy"]


def test_without_a_route_by_load_nobody_counts_it(arena: MetricsArena) -> None:
    """It is null, not 0."""
    told = Board(arena).surface.ask("GET", "/api/v1/load-balancer/stats").json()
    assert told["by_endpoint"]["a"]["in_flight"] is None
    assert told["unhealthy_count"] == 0
