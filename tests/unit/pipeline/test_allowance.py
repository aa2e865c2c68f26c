"""Counts of what is spent: periods by the calendar, purses, and what is told of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.fake_env import FakeLedger, FakeWorld
from tpo_mp.errors import Shed
from tpo_mp.pipeline.allowance import (
    FOREVER,
    NEVER,
    Calendar,
    Held,
    Period,
    Purses,
    Span,
    instant,
    shown,
)
from tpo_mp.ports import Cells


class Spender:
    """Purses of one worker in a world that stands still."""

    def __init__(self, world: FakeWorld | None = None) -> None:
        self.world = world or FakeWorld()
        env = self.world.env
        self.updates = 0
        self.busy = False
        self.ledger: Any = env.ledger
        self.purses = Purses(self, env.timers, env.clock, env.clock)

    def update(self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False) -> Cells:
        """Count what goes to the ledger; refuse it when a test says so."""
        if self.busy:
            raise Shed("busy", reason="ledger_busy", retry_after_s=1)
        self.updates += 1
        after: Cells = self.ledger.update(name, change, crowd=crowd)
        return after

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Not asked for."""
        raise AssertionError(name, crowd)

    def find(self, name: str, *, crowd: bool = False) -> Cells | None:
        """Not asked for either."""
        raise AssertionError(name, crowd)

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> Any:
        """Nor this."""
        raise AssertionError(names, crowd)

    def hold(self, amount: float, window: Span = FOREVER, limit: float = 100) -> Held:
        """Set aside what there is room for."""
        held = self.purses.hold("n", window, limit, amount, crowd=False)
        assert isinstance(held, Held)
        return held

    def refused(self, amount: float, window: Span = FOREVER, limit: float = 100) -> float:
        """What is spent when there is no room."""
        found = self.purses.hold("n", window, limit, amount, crowd=False)
        assert not isinstance(found, Held)
        return found

    @property
    def cells(self) -> Cells:
        """The count."""
        assert isinstance(self.ledger, FakeLedger)
        return self.ledger.names["n"]


def test_what_is_set_aside_is_spent_until_it_is_settled() -> None:
    """The rest comes back, and makes room."""
    one = Spender()
    held = one.hold(60)
    assert one.refused(60) == 60
    assert one.cells[1:3] == (60, 1)
    one.purses.settle(held, 10)
    assert one.cells[1:3] == (10, 1)
    one.purses.settle(one.hold(90), 90)
    assert one.cells[1:3] == (100, 2)
    assert one.refused(1) == 100
    assert isinstance(one.purses.hold("n", FOREVER, 100, 0, crowd=False), Held)


def test_what_was_undone_never_was() -> None:
    """Neither an amount nor a call."""
    one = Spender()
    one.purses.undo(one.hold(60))
    assert one.cells[1:3] == (0, 0)


def test_a_purse_saves_the_ledger_and_is_given_back_by_the_last_call() -> None:
    """While one call is open the others spend what was given back; the count is true at the end."""
    one = Spender()
    long = one.hold(10, limit=10_000)
    for _ in range(20):
        one.purses.settle(one.hold(100, limit=10_000), 5)
    assert one.updates < 6
    one.purses.settle(long, 10)
    assert one.cells[1:3] == (110, 21)


def test_a_purse_is_given_back_while_calls_are_open() -> None:
    """Within a moment, so that other workers may spend it."""
    one = Spender()
    one.hold(10)
    one.purses.settle(one.hold(80), 0)
    assert Spender(one.world).refused(50) == 90
    one.world.advance(0.06)
    assert one.cells[1] == 10
    assert Spender(one.world).hold(90).amount == 90


def test_a_busy_ledger_loses_nothing() -> None:
    """What could not be given back is given back later."""
    one = Spender()
    held = one.hold(80)
    one.busy = True
    with pytest.raises(Shed):
        one.hold(90)
    one.purses.settle(held, 5)
    one.world.advance(0.06)
    assert one.cells[1] == 80
    one.busy = False
    one.world.advance(0.06)
    assert one.cells[1:3] == (5, 1)


def test_more_than_was_set_aside_is_taken_too() -> None:
    """The count tells the truth, past its limit if need be."""
    one = Spender()
    one.purses.settle(one.hold(90), 130)
    assert one.cells[1] == 130
    assert one.refused(0) == 130


def test_what_belongs_to_a_period_that_is_over_is_not_credited_to_the_next() -> None:
    """Set aside in the first hour, settled in the second: that has its own count."""
    first, second = Span(3600, 7200), Span(7200, 10800)
    one = Spender()
    early, late = one.hold(80, first), one.hold(10, first)
    assert one.refused(20, first) == 90
    one.purses.settle(one.hold(60, second), 30)
    one.purses.settle(early, 0)
    one.world.advance(0.06)
    assert one.cells[:3] == (7200, 30, 1)
    one.hold(70, second)
    one.purses.settle(late, 0)
    one.world.advance(0.06)
    assert one.cells[1] == 100


def test_a_purse_of_the_period_before_is_not_spent_in_this_one() -> None:
    """What came back just before the turn of the hour is gone with it."""
    first, second = Span(3600, 7200), Span(7200, 10800)
    one = Spender()
    one.hold(10, first)
    one.purses.settle(one.hold(90, first), 0)
    one.hold(50, second)
    assert one.cells[:3] == (7200, 50, 1)
    assert one.refused(51, second) == 50


def test_a_worker_whose_clock_is_behind_does_not_go_back() -> None:
    """Once the hour has turned for one it has for all."""
    first, second = Span(3600, 7200), Span(7200, 10800)
    ahead = Spender()
    ahead.hold(60, second)
    behind = Spender(ahead.world)
    assert behind.refused(60, first) == 60
    behind.purses.settle(behind.hold(30, first), 0)
    assert ahead.cells[:2] == (7200, 60)


def test_nothing_is_remembered_of_calls_that_ended() -> None:
    """Purses are as many as counts with an open call."""
    one = Spender()
    for n in range(50):
        held = one.purses.hold(f"n{n}", FOREVER, 10, 5, crowd=True)
        assert isinstance(held, Held)
        one.purses.settle(held, n % 5)
    assert not one.purses._purses


@pytest.mark.parametrize(
    ("zone", "now", "period", "start", "end"),
    [
        ("UTC", "2026-03-29 14:59:59", "hour", "2026-03-29 14:00", "2026-03-29 15:00"),
        ("Asia/Kolkata", "2026-03-29 14:59:59", "hour", "2026-03-29 14:00", "2026-03-29 15:00"),
        ("UTC", "2026-12-31 23:59:59", "day", "2026-12-31 00:00", "2027-01-01 00:00"),
        ("UTC", "2026-12-31 23:59:59", "month", "2026-12-01 00:00", "2027-01-01 00:00"),
        ("America/New_York", "2028-02-29 05:00", "month", "2028-02-01 00:00", "2028-03-01 00:00"),
        # The day on which the clocks go forward has 23 hours, that of the other 25.
        ("Europe/Berlin", "2026-03-29 12:00", "day", "2026-03-29 00:00", "2026-03-30 00:00"),
        ("Europe/Berlin", "2026-10-25 12:00", "day", "2026-10-25 00:00", "2026-10-26 00:00"),
    ],
)
def test_periods_are_those_of_the_clocks_of_a_zone(
    zone: str, now: str, period: Period, start: str, end: str
) -> None:
    """Whatever the clocks do in between."""

    def at(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()

    assert Calendar(zone, lambda: at(now)).now(period) == (at(start), at(end))


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    """When the clocks go back."""
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    one = Calendar("Europe/Berlin", lambda: first).now("hour")
    two = Calendar("Europe/Berlin", lambda: first + 3600).now("hour")
    assert one.end == two.start == one.start + 3600


def test_a_calendar_turns_with_its_clock() -> None:
    """And knows one period that never ends."""
    clock = [1_000_000.0]
    calendar = Calendar("UTC", lambda: clock[0])
    first = calendar.now("hour")
    assert calendar.now("hour") is first
    clock[0] = first.end
    assert calendar.now("hour") == (first.end, first.end + 3600)
    assert calendar.now("") == (0.0, NEVER)


@pytest.mark.parametrize("name", ["", "Nowhere/Atall", "../etc/passwd", "/etc/passwd", "a\0b"])
def test_a_zone_that_is_none_is_told(name: str) -> None:
    """By name."""
    with pytest.raises(ValueError, match="no time zone of this host"):
        Calendar(name, lambda: 0.0)


def test_a_count_of_a_period_that_is_over_shows_as_empty() -> None:
    """Nobody has to come by for it to start anew."""
    cells = (3600.0, 70.0, 4.0, 3700.0)
    assert shown(cells, Span(3600, 7200)) == (70, 4)
    assert shown(cells, Span(7200, 10800)) == (0, 0)
    assert instant(3600) == "1970-01-01T01:00:00Z"
    assert instant(NEVER) is instant(0) is None
