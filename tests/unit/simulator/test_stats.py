"""Statistics of the host, since they were set back."""

from __future__ import annotations

import pytest

from tests.support.fake_env import make_call
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.simulator.meter import Meter
from tpo_mp.simulator.stats import quantile, since, totals


def test_all_workers_add_up_and_a_reset_subtracts() -> None:
    """Two seats, two models; after the reset only what came since."""
    arena = MetricsArena.create(2)
    meters = [Meter(["a", "b"], arena.block(seat, 1), lambda: 10.0) for seat in (0, 1)]

    def call(seat: int, model: str, took_s: float, status: int = 200) -> None:
        meters[seat].ended(make_call(b"{}", model=model, upstream_at=10.0 - took_s), status, None)

    assert since(None, arena.collect(), 105.0, 100.0)["total_requests"] == 0
    call(0, "a", 0.2)
    call(1, "b", 0.4, 500)
    found = since(None, arena.collect(), 110.0, 100.0)
    assert (found["total_requests"], found["total_errors"]) == (2, 1)
    assert found["avg_latency_ms"] == pytest.approx(300, abs=0.01)
    assert found["requests_per_second"] == pytest.approx(0.2)
    assert 250 <= found["p99_latency_ms"] <= 500
    baseline, _, _ = totals(arena.collect(), 110.0)
    call(1, "a", 2.0)
    found = since(baseline, arena.collect(), 120.0, 100.0)
    arena.close()
    assert (found["total_requests"], found["total_errors"]) == (1, 0)
    assert found["avg_latency_ms"] == pytest.approx(2000, abs=0.01)
    assert 1000 <= found["p99_latency_ms"] <= 2500
    assert (found["uptime_seconds"], found["since_seconds"]) == (20.0, 10.0)


def test_quantile_lies_within_its_bucket() -> None:
    """Evenly; beyond the last bound it is that bound; nothing is zero."""
    bounds = [1.0, 2.0, float("inf")]
    assert quantile(0.5, bounds, [10, 20, 20]) == 1.0
    assert quantile(0.75, bounds, [10, 20, 20]) == 1.5
    assert quantile(0.99, bounds, [0, 0, 5]) == 2.0
    assert quantile(0.99, bounds, [0, 0, 0]) == 0.0
    assert quantile(0.99, [], []) == 0.0
