"""Scenarios: timelines on a clock that a test turns, inclusion, repetition, the breaker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeLedger
from tests.support.fault_facts import facts
from tpo_mp.errors import ConfigError
from tpo_mp.simulator.orders import ErrorOrder, Orders
from tpo_mp.simulator.scenarios import Scenario, ScenarioRun, included

OUTAGE = {
    "steps": [
        {"name": "slow", "start_s": 10, "lasts_s": 20, "delay_ms": 500, "slowdown": 3},
        {"name": "down", "start_s": 20, "lasts_s": 10, "faults": [{"error": "503"}]},
        {"start_s": 40, "faults": [{"error": "500", "sequence": {"first": 1}}]},
    ]
}
BEGAN = 5000.0


def run(
    tables: dict[str, dict[str, Any]],
    name: str = "x",
    ledger: FakeLedger | None = None,
    epoch: int = 1,
) -> ScenarioRun:
    """A scenario of these, activated."""
    known = msgspec.convert(tables, dict[str, Scenario])
    return ScenarioRun(name, known, ledger or FakeLedger(), began_at=BEGAN, epoch=epoch)


def met(active: ScenarioRun, at_s: float) -> Orders | None:
    """What a request meets so long after the activation."""
    return active.choose(facts(), BEGAN + at_s, 0.0)


def test_steps_begin_and_end_in_time() -> None:
    """Delays and errors of overlapping steps come together."""
    active = run({"x": OUTAGE})
    assert met(active, 9.9) is None
    assert met(active, 10) == Orders(delay_s=0.5)
    down = met(active, 20)
    assert down is not None
    assert (down.error, down.delay_s) == (ErrorOrder(503), 0.5)
    assert met(active, 30) is None
    assert met(active, 39.9) is None
    last = met(active, 41)
    assert last is not None
    assert last.error == ErrorOrder(500)
    assert met(active, 42) is None
    assert [active.slowdown(BEGAN + at) for at in (0, 15, 30)] == [1.0, 3.0, 1.0]


def test_status_says_which_step_is_active() -> None:
    """For each timeline."""
    active = run({"x": OUTAGE | {"include": ["y"]}, "y": {"steps": [{"name": "all"}]}})
    told = active.status(BEGAN + 25)
    assert (told["name"], told["elapsed_s"]) == ("x", 25)
    by_name = {one["scenario"]: one for one in told["timelines"]}
    assert by_name["x"]["active"] == ["slow", "down"]
    assert by_name["y"]["active"] == ["all"]
    assert [step["name"] for step in by_name["x"]["steps"]] == ["slow", "down", "step-3"]
    assert by_name["x"]["steps"][0]["active"]
    assert not by_name["x"]["steps"][2]["active"]


def test_timeline_repeats() -> None:
    """From its beginning."""
    active = run({"x": {"repeat_s": 60, "steps": [{"start_s": 50, "faults": [{"error": "503"}]}]}})
    assert [met(active, at) is not None for at in (0, 50, 59, 60, 109, 111, 120)] == [
        False, True, True, False, False, True, False,
    ]  # fmt: skip


def test_faults_of_the_scenario_hold_throughout() -> None:
    """Before and in every step; the first that strikes wins, delays of steps are kept."""
    active = run({"x": OUTAGE | {"faults": [{"error": "429", "sequence": {"every": 2}}]}})
    seen = [met(active, at) for at in (0, 1, 21, 22)]
    assert seen[0] is None
    assert [one.error.status for one in seen[1:] if one is not None and one.error] == [
        429, 503, 429,
    ]  # fmt: skip
    assert seen[3] is not None
    assert seen[3].delay_s == 0.5


def test_included_scenarios_run_beside_it() -> None:
    """Its own first."""
    active = run({
        "x": {"include": ["y"], "steps": [{"start_s": 5, "faults": [{"error": "500"}]}]},
        "y": {"faults": [{"error": "503", "delay_ms": 20}]},
    })  # fmt: skip
    early, late = met(active, 0), met(active, 5)
    assert early is not None
    assert late is not None
    assert (early.error, late.error) == (ErrorOrder(503), ErrorOrder(500))


@pytest.mark.parametrize(
    ("includes", "said"),
    [
        ({"a": ["a"]}, "scenarios.a.include: 'a' goes in a circle: a > a"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "scenarios.c.include: 'b' goes in a circle: b > c"),
        ({"a": ["bb"], "b": []}, "scenarios.a.include: 'bb' is no scenario"),
    ],
)
def test_circles_and_strangers_are_refused(includes: dict[str, list[str]], said: str) -> None:
    """With the path and the way round."""
    known = {name: Scenario(include=tuple(others)) for name, others in includes.items()}
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        included("a", known)


def test_one_scenario_may_be_included_twice() -> None:
    """By two others: that is no circle, and it runs once."""
    known = {"a": Scenario(include=("b", "c")), "b": Scenario(include=("d",)),
             "c": Scenario(include=("d",)), "d": Scenario()}  # fmt: skip
    assert sorted(included("a", known)) == ["a", "b", "c", "d"]


def test_two_processes_are_in_the_same_step_and_count_together() -> None:
    """One clock, one ledger."""
    ledger = FakeLedger()
    table = {"steps": [{"start_s": 5, "faults": [{"error": "503", "sequence": {"first": 3}}]}]}
    processes = [run({"x": table}, ledger=ledger) for _ in range(2)]
    assert [met(processes[n % 2], 6) is not None for n in range(6)] == [True] * 3 + [False] * 3
    again = run({"x": table}, ledger=ledger, epoch=2)
    assert [met(again, 6) is not None for _ in range(4)] == [True] * 3 + [False]


def test_breaker_opens_tries_and_closes() -> None:
    """Five failures in ten seconds; then 503 with the wait left; then three answers close it."""
    table = {
        "breaker": {},
        "steps": [{"lasts_s": 10, "faults": [{"error": "500"}]}],
    }
    ledger = FakeLedger()
    processes = [run({"x": table}, ledger=ledger) for _ in range(2)]
    for n in range(5):
        failed = met(processes[n % 2], n)
        assert failed is not None
        assert failed.error == ErrorOrder(500)
    refused = met(processes[1], 10)
    assert refused is not None
    assert refused.error == ErrorOrder(503, 24.0, "circuit_breaker_open")
    assert processes[0].status(BEGAN + 10)["timelines"][0]["breaker"] == "open"
    assert met(processes[0], 34.5) is None
    assert processes[0].status(BEGAN + 35)["timelines"][0]["breaker"] == "half_open"
    assert met(processes[1], 35) is None
    assert met(processes[0], 36) is None
    assert processes[1].status(BEGAN + 36)["timelines"][0]["breaker"] == "closed"


def test_refusals_of_the_client_are_no_failures() -> None:
    """A 429 does not open a breaker, a broken connection does."""
    limited = run({"x": {"breaker": {"failures": 1}, "faults": [{"error": "429"}]}})
    assert met(limited, 0) == met(limited, 1)
    cut = run({"x": {"breaker": {"failures": 1}, "faults": [{"fault": "reset"}]}})
    met(cut, 0)
    refused = met(cut, 1)
    assert refused is not None
    assert refused.error is not None
    assert refused.error.name == "circuit_breaker_open"


def test_step_that_never_comes_is_refused() -> None:
    """It starts when the timeline has begun again."""
    with pytest.raises(msgspec.ValidationError, match="never comes"):
        msgspec.convert({"repeat_s": 10, "steps": [{"start_s": 10}]}, Scenario)
