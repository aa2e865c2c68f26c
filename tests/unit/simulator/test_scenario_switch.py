"""Scenarios and chaos as changes of the live state."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from tests.support.fake_env import FakeLedger
from tpo_mp.errors import NotFound
from tpo_mp.simulator import scenario_switch
from tpo_mp.simulator.live import NOTHING_TOLD, ActiveScenario, LiveState
from tpo_mp.simulator.scenario_presets import PRESETS
from tpo_mp.simulator.scenarios import Scenario, ScenarioStep
from tpo_mp.simulator.troubles import SCENARIO, since, text_of

OWN: list[dict[str, Any]] = [{"scenario": "mine", "scenarios": {"mine": {"description": "my own"}}}]
STEPS = Scenario(steps=(ScenarioStep(lasts_s=2), ScenarioStep(name="late", start_s=2)))
NAMES = scenario_switch.known(OWN)


def test_shipped_and_own_scenarios_are_known() -> None:
    """With their descriptions."""
    assert set(NAMES) == {*PRESETS, "mine"}
    assert NAMES["mine"] == "my own"


def test_the_files_scenario_is_active_until_another_word() -> None:
    """Then the one that was switched on, or none."""
    assert scenario_switch.active(NOTHING_TOLD, OWN) == "mine"
    on = scenario_switch.activated(NOTHING_TOLD, "full_outage", 5.0, NAMES)
    assert scenario_switch.active(on, OWN) == "full_outage"
    off = scenario_switch.deactivated(on, "full_outage", "full_outage", NAMES)
    assert scenario_switch.active(off, OWN) == ""
    assert off.scenario is not UNSET


def test_every_activation_has_its_own_number() -> None:
    """The same scenario again is another run."""
    state = NOTHING_TOLD
    runs = []
    for now in (5.0, 6.0):
        state = scenario_switch.activated(state, "mine", now, NAMES)
        assert isinstance(state.scenario, ActiveScenario)
        runs.append((state.scenario.began_at, state.scenario.epoch))
    state = scenario_switch.deactivated(state, "mine", "mine", NAMES)
    assert runs == [(5.0, 1), (6.0, 2)]
    assert state.scenarios_begun == 2


def test_switching_off_another_changes_nothing() -> None:
    """The active one goes on."""
    on = scenario_switch.activated(NOTHING_TOLD, "mine", 5.0, NAMES)
    assert scenario_switch.deactivated(on, "full_outage", "mine", NAMES) == on


def test_an_unknown_name_is_not_found() -> None:
    """In either direction."""
    with pytest.raises(NotFound, match="known: "):
        scenario_switch.activated(NOTHING_TOLD, "nonsense", 5.0, NAMES)
    with pytest.raises(NotFound):
        scenario_switch.deactivated(NOTHING_TOLD, "nonsense", "", NAMES)


def test_a_list_says_which_is_active_and_since_when() -> None:
    """In the order of the alphabet."""
    on = scenario_switch.activated(NOTHING_TOLD, "mine", 5.0, NAMES)
    run = scenario_switch.run_of(on, "", {"mine": STEPS}, FakeLedger())
    assert run is not None
    found = scenario_switch.listed(on, NAMES, "mine", run.status(7.5))
    assert (found["active"], found["elapsed_s"], found["chaos"]) == ("mine", 2.5, True)
    (timeline,) = found["timelines"]
    assert (timeline["at_s"], timeline["active"]) == (2.5, ["late"])
    assert [one["name"] for one in found["scenarios"] if one["active"]] == ["mine"]
    assert [one["name"] for one in found["scenarios"]] == sorted(NAMES)


def test_asking_for_the_files_scenario_begins_nothing() -> None:
    """It is told once a worker began it, with the beginning that this one set."""
    ledger, own = FakeLedger(), {"mine": STEPS}
    assert scenario_switch.run_of(NOTHING_TOLD, "mine", own, ledger) is None
    began_at, _ = since(ledger, SCENARIO, text_of("mine", PRESETS | own), 5.0)
    run = scenario_switch.run_of(NOTHING_TOLD, "mine", own, ledger)
    assert run is not None
    assert run.began_at == began_at == 5.0
    other = {"mine": Scenario()}
    assert scenario_switch.run_of(NOTHING_TOLD, "mine", other, ledger) is None
    assert since(ledger, SCENARIO, text_of("mine", PRESETS | own), 9.0)[0] == 5.0


def test_no_run_where_no_scenario_is_active() -> None:
    """Switched off, never chosen, or not one of this simulator's."""
    off = LiveState(scenario=None)
    strange = scenario_switch.activated(NOTHING_TOLD, "mine", 5.0, NAMES)
    for state, scenario in ((off, "full_outage"), (NOTHING_TOLD, ""), (strange, "")):
        assert scenario_switch.run_of(state, scenario, {}, FakeLedger()) is None
