"""Switching scenarios and chaos on and off, as changes of the live state.

One scenario is active at a time; what it does is told in ``scenarios``.

Invariants: an activation has a number of its own, so a scenario that is switched on again counts
its requests anew; a name that is not known is ``NotFound``; who asks how far a scenario is changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import UNSET, structs

from tpo_mp.errors import NotFound
from tpo_mp.ports import Ledger

from .live import ActiveScenario, LiveState
from .scenario_presets import PRESETS
from .scenarios import Scenario, ScenarioRun
from .troubles import SCENARIO, known_since, text_of


def known(options: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Every scenario's name and description; ``options`` are those of the host's simulators."""
    found = {name: scenario.description for name, scenario in PRESETS.items()}
    for one in options:
        found |= {name: told["description"] for name, told in one["scenarios"].items()}
    return found


def active(state: LiveState, options: Iterable[Mapping[str, Any]]) -> str:
    """The name of the scenario in force, empty for none."""
    if state.scenario is UNSET:
        return next((one["scenario"] for one in options if one["scenario"]), "")
    return state.scenario.name if isinstance(state.scenario, ActiveScenario) else ""


def activated(state: LiveState, name: str, now: float, names: Iterable[str]) -> LiveState:
    """The state with a scenario that begins now."""
    _check(name, names)
    number = state.scenarios_begun + 1
    begun = ActiveScenario(name=name, began_at=now, epoch=number)
    return structs.replace(state, scenario=begun, scenarios_begun=number)


def deactivated(state: LiveState, name: str, current: str, names: Iterable[str]) -> LiveState:
    """The state without a scenario; another one that is active stays so."""
    _check(name, names)
    return structs.replace(state, scenario=None) if name == current else state


def run_of(
    state: LiveState, scenario: str, own: Mapping[str, Scenario], ledger: Ledger
) -> ScenarioRun | None:
    """The run of the active scenario at a simulator with such options; None: there is none.

    ``None`` also for the file's scenario until a worker has begun it.
    """
    table, told = {**PRESETS, **own}, state.scenario
    if isinstance(told, ActiveScenario):
        if told.name not in table:
            return None
        return ScenarioRun(told.name, table, ledger, began_at=told.began_at, epoch=told.epoch)
    if told is not UNSET or not scenario:
        return None
    begun = known_since(ledger, SCENARIO, text_of(scenario, table))
    if begun is None:
        return None
    began_at, number = begun
    return ScenarioRun(scenario, table, ledger, began_at=began_at, epoch=-number)


def listed(
    state: LiveState, names: Mapping[str, str], current: str, status: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Every scenario, and which is active, since when, in which of its steps."""
    return {
        "active": current or None,
        "elapsed_s": None if status is None else status["elapsed_s"],
        "chaos": state.chaos,
        "timelines": [] if status is None else status["timelines"],
        "scenarios": [
            {"name": name, "description": said, "active": name == current}
            for name, said in sorted(names.items())
        ],
    }


def _check(name: str, names: Iterable[str]) -> None:
    there = sorted(names)
    if name not in there:
        said = f"no scenario is called {name[:64]!r}; known: {', '.join(there)}"
        raise NotFound(said, reason="scenario_not_found", param="name")
