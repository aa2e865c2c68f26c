"""Gates judge a figure by its limit, its failures and what it was measured with."""

import pytest

from benchmarks.gates import GATES, Gate, Verdict
from benchmarks.scenario import NAMES
from tests.unit.benchmarks.fakes import report


def gate(**change: object) -> Gate:
    """A gate of 28, stretch 22, on ``tpo``'s CPU."""
    words: dict = {
        "figure": "CPU",
        "scenario": "relay",
        "value": lambda seen: seen.median("tpo", "cpu_us"),
        "limit": 28,
        "unit": "µs",
        "targets": ("tpo",),
        "stretch": 22,
    }
    return Gate(**words | change)


@pytest.mark.parametrize(
    ("cpu", "verdict"),
    [(22.0, Verdict.STRETCH), (22.1, Verdict.MET), (28.0, Verdict.MET), (28.1, Verdict.MISSED)],
)
def test_limit_and_stretch_are_inclusive(cpu, verdict):
    """The limit itself is met."""
    assert gate().verdict({"relay": report("relay", tpo=[{"cpu_us": cpu}])}) is verdict


@pytest.mark.parametrize(("rps", "verdict"), [(50.0, Verdict.MET), (49.0, Verdict.MISSED)])
def test_rates_must_be_at_least_their_limit(rps, verdict):
    """Higher is better where the gate says so."""
    rate = gate(value=lambda seen: seen.median("tpo", "rps"), limit=50, stretch=None, highest=False)
    assert rate.verdict({"relay": report("relay", tpo=[{"rps": rps}])}) is verdict
    assert rate.text() == "≥ 50 µs"


def test_failed_requests_spoil_a_figure():
    """Fast and wrong is not met."""
    seen = report("relay", tpo=[{"cpu_us": 1.0, "failed": 1}])
    assert gate().verdict({"relay": seen}) is Verdict.MISSED


def test_figure_that_is_missing_is_not_measured():
    """Neither a missing scenario nor a missing target is a failure."""
    assert gate().verdict({}) is Verdict.UNKNOWN
    assert gate().verdict({"relay": report("relay")}) is Verdict.UNKNOWN


def test_figure_from_too_small_a_run_is_shown_and_not_judged():
    """Growth over a thousand requests says nothing about a million."""
    small = gate(enough=("served", 1000))
    seen = {"relay": report("relay", tpo=[{"cpu_us": 1.0, "served": 999}])}
    assert small.measured(seen) == 1.0
    assert small.verdict(seen) is Verdict.UNKNOWN


def test_figure_from_a_busy_machine_is_shown_and_not_judged():
    """One loud round of three is noise in the spread, two are no measurement."""

    def verdict(*shares: float) -> Verdict:
        rows = [{"cpu_us": 20.0, "others_share": share} for share in shares]
        return gate().verdict({"relay": report("relay", tpo=rows)})

    assert verdict(0.0, 0.5, 0.0) is Verdict.STRETCH
    assert verdict(0.5, 0.5, 0.0) is Verdict.BUSY


def test_every_gate_reads_a_scenario_that_exists():
    """A gate on nothing would never be missed."""
    assert {gate.scenario for gate in GATES} <= set(NAMES)
    assert len({gate.figure for gate in GATES}) == len(GATES)
