"""Switching scenarios and chaos on and off, as changes of the live state.

One scenario is active at a time; what it does is told in ``scenarios``.

Invariants: an activation has a number of its own, so a scenario that is switched on again counts
its requests anew; a name that is not known is ``NotFound``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import UNSET, structs

from tpo_mp.errors import NotFound

from .live import ActiveScenario, LiveState
from .scenario_presets import PRESETS


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


def listed(state: LiveState, names: Mapping[str, str], current: str, now: float) -> dict[str, Any]:
    """Every scenario, and which is active since when."""
    since = state.scenario.began_at if isinstance(state.scenario, ActiveScenario) else None
    return {
        "active": current or None,
        "elapsed_s": None if since is None else round(max(now - since, 0.0), 3),
        "chaos": state.chaos,
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
