"""Amounts that a host may spend in a period: set aside first, settled at what was really spent.

One row of the ledger is one count::

    cells    since | spent and set aside | calls | when it last changed (epoch seconds)

``since`` is the start of the period the count is of; for one that never starts anew by itself it
is 0, or when it was reset.  What is set aside is spent already, and settling gives back what was
not used: so whoever dies with something set aside has spent it, once, and nobody needs to find out.

What a process gets back it keeps in its ``Purse`` for its next calls, which then need no lock.
A purse is given back when its process has no call of the count open any more, when what the ledger
has left is not enough, and in any case within 100 ms.

Invariants: a call is let in only when the count, with what it may spend at most, stays within the
limit: what is spent and what is set aside together never pass it, whoever dies.  What belongs to
a period that is over is dropped, never credited to the next.  A count is changed by what a call
set aside and settled once each.
Known weakness: a call that spends more than was set aside for it passes the limit by the rest
(``tpo_budget_overrun_total``); a worker killed with a full purse has spent it; at the ledger's cap
the session not seen for longest begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Ledger, Timers

KEPT: Final = "kept:budget:"
"""What the names of all counts begin with."""
PURSE_S: Final = 0.05
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


class Purse:
    """What one process got back of one count, and how many of its calls are open."""

    __slots__ = ("amount", "calls", "open", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.amount = 0.0
        self.calls = 0
        self.open = 0


class Held(NamedTuple):
    """What a call has set aside in one count."""

    name: str
    crowd: bool
    since: float
    amount: float


class Purses:
    """All counts as one process uses them; bounded by its open calls."""

    deadline: float = NEVER
    filed_at: float = 0.0

    def __init__(
        self,
        ledger: Ledger,
        timers: Timers,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._timers = timers
        self._clock = clock
        self._wall = wall
        self._purses: dict[str, tuple[Purse, bool]] = {}

    def hold(
        self, name: str, window: Span, limit: float, amount: float, *, crowd: bool
    ) -> Held | float:
        """Set ``amount`` aside, or answer how much is spent already.  Raises ``Shed``."""
        kept = self._purses.get(name)
        if kept is None:
            purse = Purse()
        else:
            purse = kept[0]
            if purse.amount >= amount and purse.since >= window.start:
                purse.amount -= amount
                purse.calls += 1
                purse.open += 1
                return Held(name, crowd, purse.since, amount)
        spent = 0.0
        taken = emptied = False
        now = self._wall()

        def take(cells: Cells) -> Cells:
            nonlocal spent, taken, emptied
            since, used, calls, _ = cells
            emptied = since != purse.since or used + amount > limit
            if emptied:
                since, used, calls, _ = back(cells, purse)
            if since < window.start:
                since, used, calls = window.start, 0.0, 0.0
            taken = used + amount <= limit
            spent = used
            if taken:
                used, calls = used + amount, calls + 1
            return (since, used, calls, now)

        since = self._ledger.update(name, take, crowd=crowd)[0]
        if emptied or purse.since != since:
            purse.since, purse.amount, purse.calls = since, 0.0, 0
        if not taken:
            return spent
        purse.open += 1
        if kept is None:
            self._purses[name] = (purse, crowd)
        return Held(name, crowd, since, amount)

    def settle(self, held: Held, spent: float) -> None:
        """Give back what was not spent; what was spent beyond it is taken too."""
        self._over(held, held.amount - spent, calls=0)

    def undo(self, held: Held) -> None:
        """The call was not let in after all: it is as if it had never come."""
        self._over(held, held.amount, calls=-1)

    def _over(self, held: Held, amount: float, *, calls: int) -> None:
        kept = self._purses.get(held.name)
        if kept is None:
            kept = self._purses[held.name] = (Purse(), held.crowd)
        purse = kept[0]
        if purse.since < held.since:  # what is in it is of a period that is over
            purse.since, purse.amount, purse.calls = held.since, 0.0, 0
        if purse.since == held.since:
            purse.amount += amount
            purse.calls += calls
        purse.open = max(purse.open - 1, 0)
        if purse.open or not self._give_back(held.name):
            self._later()

    def _give_back(self, name: str) -> bool:
        """Empty one purse; false when the ledger cannot take it now."""
        purse, crowd = self._purses[name]
        if purse.amount or purse.calls:
            now = self._wall()

            def give(cells: Cells) -> Cells:
                since, used, calls, _ = back(cells, purse)
                return (since, used, calls, now)

            try:
                self._ledger.update(name, give, crowd=crowd)
            except Shed:
                return False
            purse.amount, purse.calls = 0.0, 0
        if not purse.open:
            del self._purses[name]
        return True

    def _later(self) -> None:
        if self.deadline == NEVER:
            now = self._clock()
            self.deadline = now + PURSE_S
            self._timers.add(self, now)

    def expire(self) -> None:
        """Give back what purses hold; what the ledger cannot take now is tried again."""
        for name in list(self._purses):
            self._give_back(name)
        if any(purse.amount or purse.calls for purse, _ in self._purses.values()):
            self._later()


def back(cells: Cells, purse: Purse) -> Cells:
    """A count with a purse emptied into it, if it is still of the same period."""
    since, used, calls, at = cells
    if since != purse.since:
        return cells
    return (since, max(used - purse.amount, 0.0), max(calls + purse.calls, 0.0), at)
