"""The live state: changed whole, by the newest, and seen in a header line."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import UNSET, structs

from tests.support.fake_env import FakeLive
from tpo_mp.errors import Shed
from tpo_mp.simulator import live as live_file
from tpo_mp.simulator.live import (
    NOTHING_TOLD,
    ActiveScenario,
    LiveState,
    Proposed,
    VersionLine,
    change,
    composed,
    merged,
    read_state,
)


def test_nothing_was_told_at_first() -> None:
    """Version 0, no options, chaos on, no word about scenarios."""
    assert read_state(FakeLive()) == (0, NOTHING_TOLD)
    assert NOTHING_TOLD.scenario is UNSET
    assert NOTHING_TOLD.chaos


def test_a_change_is_read_back() -> None:
    """With everything in it."""
    live = FakeLive()
    state = LiveState(
        options={"seed": 3},
        scenario=ActiveScenario(name="outage", began_at=12.5, epoch=2),
        chaos=False,
    )
    assert asyncio.run(change(live, lambda _: state)) == (1, state)
    assert read_state(live) == (1, state)
    off = structs.replace(state, scenario=None)
    asyncio.run(change(live, lambda _: off))
    assert read_state(live)[1].scenario is None


def test_a_change_is_made_to_the_newest_state() -> None:
    """Whoever was overtaken starts again from what the other left."""
    live = FakeLive()
    others = [b'{"options":{"seed":9}}']

    def edit(state: LiveState) -> LiveState:
        if others:
            live.replace(live.version, others.pop())
        return structs.replace(state, chaos=False)

    version, state = asyncio.run(change(live, edit))
    assert (version, state.options, state.chaos) == (2, {"seed": 9}, False)


def test_a_refused_edit_changes_nothing() -> None:
    """Its error reaches the caller."""
    live = FakeLive()

    def refuse(_: LiveState) -> LiveState:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(change(live, refuse))
    assert live.version == 0


def test_who_never_gets_the_state_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many tries, and without a change."""
    monkeypatch.setattr(live_file, "_TRIES", 3)
    monkeypatch.setattr(live_file, "_PAUSE_S", 0.0)
    with pytest.raises(Shed):
        asyncio.run(change(Proposed(NOTHING_TOLD), lambda state: state))


def test_patches_merge_tables_and_null_takes_out() -> None:
    """RFC 7396, and two patches as one."""
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    assert merged(base, {"a": {"x": None, "z": 3}, "b": [3]}) == {"a": {"y": 2, "z": 3}, "b": [3]}
    first, second = {"a": {"x": None, "z": 3}}, {"a": {"z": None, "w": 4}}
    both = composed(first, second)
    assert merged(base, both) == merged(merged(base, first), second)


def test_header_line_follows_the_version() -> None:
    """It is made anew only when that changed."""
    live = FakeLive()
    line = VersionLine(live)
    assert line() == b"x-sim-config-version: 0\r\n"
    assert line() is line()
    live.replace(0, b"{}")
    assert line() == b"x-sim-config-version: 1\r\n"


def test_a_trial_shares_nothing() -> None:
    """Its ledger counts by itself."""
    trial = Proposed(NOTHING_TOLD)
    assert [trial.ordinal("a"), trial.ordinal("a"), trial.ordinal("b")] == [1, 2, 1]
