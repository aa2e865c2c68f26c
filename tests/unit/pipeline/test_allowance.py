"""Periods by the calendar, and what is told of a count."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tpo_mp.pipeline.allowance import NEVER, Calendar, Period, Span, instant, shown


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
