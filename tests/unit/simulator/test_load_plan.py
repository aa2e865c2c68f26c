"""Load in patterns: how many requests when, and what is asserted of them."""

from __future__ import annotations

import math

import pytest

from tpo_mp.simulator.load_plan import LoadAssertion, LoadOutcome, LoadPlan, table


def test_constant_rate_is_evenly_spaced() -> None:
    """Ten a second for two seconds: twenty, a tenth apart, the first at once."""
    arrivals = list(LoadPlan(rate=10, for_s=2).arrivals())
    assert len(arrivals) == 20
    assert arrivals == pytest.approx([n / 10 for n in range(20)], abs=1e-6)


def test_ramp_grows_evenly() -> None:
    """From 0 to 100 in ten seconds: 500 in all, 125 in the first half."""
    arrivals = list(LoadPlan(pattern="ramp", rate=0.001, to=100, for_s=10).arrivals())
    assert len(arrivals) == 500
    assert 124 <= sum(at < 5 for at in arrivals) <= 126
    assert arrivals == sorted(arrivals)


def test_spike_is_where_it_is_said() -> None:
    """Ten a second, but for two seconds of fifty."""
    plan = LoadPlan(pattern="spike", rate=10, to=50, for_s=10, spike_at_s=4, spike_for_s=2)
    arrivals = list(plan.arrivals())
    assert len(arrivals) == 180
    assert sum(4 <= at < 6 for at in arrivals) == pytest.approx(100, abs=1)
    late = LoadPlan(pattern="spike", rate=10, to=50, for_s=10, spike_at_s=9, spike_for_s=5)
    assert len(list(late.arrivals())) == 140


def test_plan_that_is_too_large_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="more than"):
        next(LoadPlan(rate=1e5, for_s=3600).arrivals())


def outcome() -> LoadOutcome:
    """A hundred sent in ten seconds, ninety answered in 1 to 90 ms."""
    seen = LoadOutcome(sent=100, took_s=10.0)
    seen.latencies_s = [n / 1000 for n in range(90, 0, -1)]
    for _ in range(10):
        seen.failed("503")
    return seen


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("latency_p99<90.1", True), ("latency_p99<90", False), ("latency_p50<=45", True),
        ("latency_max>89", True), ("error_rate<=0.1", True), ("error_rate<0.1", False),
        ("throughput >= 9", True), ("throughput>9", False), ("latency_mean<46", True),
    ],
)  # fmt: skip
def test_assertions_are_judged_by_what_was_seen(text: str, holds: bool) -> None:
    """Bounds belong to one side."""
    assert LoadAssertion.read(text).holds(outcome()) is holds


def test_nothing_answered_holds_nothing() -> None:
    """A latency that was never measured is not below its bound."""
    assert math.isnan(LoadOutcome().latency_ms(0.99))
    assert not LoadAssertion.read("latency_p99<1000").holds(LoadOutcome(sent=3))


@pytest.mark.parametrize(
    "text", ["latency_p99", "latency_p99=3", "speed<3", "latency_p99<", "error_rate<1.2.3"]
)
def test_assertions_that_cannot_be_read_are_refused(text: str) -> None:
    """With the reason."""
    with pytest.raises(ValueError, match=r"no assertion|nothing that is measured|no number"):
        LoadAssertion.read(text)


def test_table_tells_all() -> None:
    """Counts, failures by kind, measures, and each assertion."""
    told = table(outcome(), [LoadAssertion.read("error_rate<0.1")])
    assert "failed: 503" in told
    assert "FAILS" in told
    assert "latency_p99" in told
