"""The scenarios that ship: all there are, and each does what its figures say."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.fake_env import FakeLedger
from tests.support.fault_facts import FakeFacts, facts
from tpo_mp.simulator.orders import Orders
from tpo_mp.simulator.scenario_presets import PRESETS
from tpo_mp.simulator.scenarios import ScenarioRun

NAMED = ("intermittent_rate_limits", "cascading_failures", "gradual_degradation",
         "quota_exhaustion", "high_load", "context_length_errors", "periodic_outages",
         "multi_error_chaos")  # fmt: skip
SHIPPED = ("none", "intermittent_timeouts", "rate_limit_stress", "high_latency", "partial_outage",
           "full_outage")  # fmt: skip


class Active:
    """A preset in force, on a clock of its own."""

    def __init__(self, name: str) -> None:
        self.run = ScenarioRun(name, PRESETS, FakeLedger(), began_at=0.0, epoch=1)

    def at(self, at_s: float, of: FakeFacts | None = None) -> Orders | None:
        """What a request meets then."""
        return self.run.choose(of or facts(), at_s, 0.0)

    def statuses(self, count: int, every_s: float = 60.0) -> Counter[int]:
        """How many of so many different requests are refused, by status."""
        found: Counter[int] = Counter()
        for n in range(count):
            met = self.at(n * every_s, facts(drawn=b"%d" % n))
            found[met.error.status if met is not None and met.error is not None else 200] += 1
        return found


def test_all_that_are_named_are_there() -> None:
    """Eight, and those that ship besides; nothing else."""
    assert set(PRESETS) == {*NAMED, *SHIPPED}
    assert all(preset.description for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("intermittent_rate_limits", {429: 0.05}),
        ("multi_error_chaos", {429: 0.03, 500: 0.02, 504: 0.01}),
        ("intermittent_timeouts", {504: 0.05}),
        ("partial_outage", {500: 0.25, 503: 0.1}),
        ("cascading_failures", {503: 0.15}),
        ("full_outage", {503: 1.0}),
        ("none", {}),
    ],
)
def test_shares_are_those_of_the_design(name: str, shares: dict[int, float]) -> None:
    """A request a minute, so that no breaker opens; within three sigma and a bit."""
    seen = Active(name).statuses(4000)
    assert set(seen) - {200} == set(shares)
    for status, share in shares.items():
        sigma = (4000 * share * (1 - share)) ** 0.5
        assert abs(seen[status] - 4000 * share) <= 3.5 * sigma, (name, status, seen)


def test_gradual_degradation_has_its_timeline() -> None:
    """Slow from 30 s for 60 s, then down from 90 s for 30 s."""
    active = Active("gradual_degradation")
    assert active.at(29.9) is None
    delays = [met.delay_s for at in (30, 50, 89) if (met := active.at(at)) is not None]
    assert delays == sorted(delays)
    assert len(set(delays)) == 3
    for at in (90, 119.9):
        down = active.at(at)
        assert down is not None
        assert down.error is not None
        assert down.error.status == 503
    assert active.at(120) is None


def test_quota_exhaustion_spends_a_hundred_thousand_tokens_an_hour() -> None:
    """Then refuses, with the wait until the hour is over."""
    active = Active("quota_exhaustion")
    assert active.at(0) is None
    active.run.spend(99_999, 1)
    assert active.at(2) is None
    active.run.spend(1, 3)
    met = active.at(600)
    assert met is not None
    assert met.error is not None
    assert (met.error.name, met.error.retry_after_s) == ("quota_exceeded", 3000)
    assert active.at(3600) is None


def test_high_load_begins_over_fifty_calls() -> None:
    """And fails all at ninety-five and more."""
    active = Active("high_load")
    assert active.run.counts_calls
    assert active.at(0, facts(under_way=50)) is None
    assert active.at(0, facts(under_way=95)) is not None


def test_context_length_errors_begin_at_a_hundred_thousand_tokens() -> None:
    """Exactly."""
    active = Active("context_length_errors")
    assert active.at(0, facts(prompt=99_999)) is None
    met = active.at(0, facts(prompt=100_000))
    assert met is not None
    assert met.error is not None
    assert (met.error.status, met.error.name) == (400, "context_length_exceeded")


def test_periodic_outages_strike_every_tenth_five_times() -> None:
    """Request 10, 20, … 50 and then no more."""
    active = Active("periodic_outages")
    met = [n for n in range(1, 81) if active.at(n) is not None]
    assert met == [10, 20, 30, 40, 50]


def test_rate_limit_stress_leaves_ten_answers_a_minute() -> None:
    """Of a hundred requests in one minute ten are answered."""
    active = Active("rate_limit_stress")
    met = [active.at(n / 2, facts(drawn=b"%d" % n)) for n in range(100)]
    assert met.count(None) == 10


def test_high_latency_is_five_seconds() -> None:
    """On everything."""
    assert Active("high_latency").at(0) == Orders(delay_s=5.0)


@pytest.mark.parametrize(("name", "open_s"), [("partial_outage", 30), ("cascading_failures", 120)])
def test_breaker_of_a_scenario_opens(name: str, open_s: float) -> None:
    """When requests come fast enough for five failures in ten seconds."""
    active = Active(name)
    for n in range(2000):
        met = active.at(n / 100, facts(drawn=b"%d" % n))
        if met is not None and met.error is not None and met.rule == "circuit_breaker_open":
            assert met.error.retry_after_s == pytest.approx(open_s, abs=0.1)
            return
    pytest.fail("it never opened")
