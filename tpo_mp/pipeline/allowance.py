"""Periods of the calendar that a host's budgets are counted in, and what a count of one shows.

A count is four numbers::

    since | spent and set aside | calls | when it last changed (epoch seconds)

``since`` is the start of the period the count is of; for one that never starts anew by itself it
is 0, or when it was reset.  How it is spent from is told in ``purses``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from tpo_mp.ports import Cells

KEPT: Final = "kept:budget:"
"""What the names of all counts begin with."""
Period: TypeAlias = Literal["hour", "day", "month", ""]
"""The empty one never ends."""
NEVER: Final = float("inf")


class Span(NamedTuple):
    """One hour, day or month: epoch seconds of its start and of the next one's."""

    start: float
    end: float


FOREVER: Final = Span(0.0, NEVER)


class Calendar:
    """Hours, days and months as clocks of a time zone show them."""

    def __init__(self, time_zone: str, wall: Callable[[], float]) -> None:
        """Raises ``ValueError`` for a zone that this host does not know."""
        self._zone = zone(time_zone)
        self._wall = wall
        self._known: dict[Period, Span] = {"": FOREVER}

    def now(self, period: Period) -> Span:
        """The period that it is now."""
        known = self._known.get(period)
        at = self._wall()
        if known is None or not known.start <= at < known.end:
            self._known[period] = known = self._at(period, at)
        return known

    def _at(self, period: Period, at: float) -> Span:
        now = datetime.fromtimestamp(at, self._zone)
        if period == "hour":
            start = at - now.minute * 60 - now.second - now.microsecond / 1e6
            return Span(float(round(start)), float(round(start)) + 3600)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        first = day.replace(day=1) if period == "month" else day
        after = first + timedelta(days=32 if period == "month" else 1)
        following = after.replace(day=1) if period == "month" else after
        return Span(first.timestamp(), following.timestamp())


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name; raises ``ValueError``."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(f"no time zone of this host is called {name!r}") from None


def instant(at: float) -> str | None:
    """Epoch seconds as RFC 3339; ``None`` for what never comes, or never was."""
    if not 0 < at < NEVER:
        return None
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(cells: Cells, window: Span) -> tuple[float, float]:
    """What is spent and how many calls spent it, in the period that it is now."""
    since, used, calls, _ = cells
    return (used, calls) if since >= window.start else (0.0, 0.0)


def joined(there: Cells, kept: Cells) -> Cells:
    """A count that went on while what it was before a restart came back."""
    if there[0] != kept[0] and (there[1] or there[2]):
        return max(there, kept, key=lambda cells: cells[0])
    return (kept[0], there[1] + kept[1], there[2] + kept[2], max(there[3], kept[3]))
