"""How fast a queue is served, and how much later than that a call may get its turn.

Only time in which somebody waits counts: an empty queue says nothing of its speed.  Samples are
kept as two counts, the one that grows and the one before it, so the memory is the same at any speed
and old samples are gone once as many new ones were seen, or ``WINDOW_S`` seconds of them.

A rate is told from ``LEAST_TURNS`` samples and ``LEAST_S`` seconds on, and from ``ROUNDS`` times as
many samples as there are places: places that were taken together come back together, and a rate
measured between two such moments would be any number.  Far fewer than ``MANY_TURNS`` samples may be
a third off, so the doubt (two standard deviations of a Poisson count) is in the calls' favour; from
so many on there is none.

Even at a known rate a call may be late: places come back in bunches (equal calls that began
together end together), or by chance.  How much that is at this backend is seen on those who get
their turn, and on those for whom it comes too late.  A call that waits while ``k`` places come back
lags ``rate * waited - k`` places behind, and::

    lag     (rate * waited - k) / sqrt(max(k, 2 * places))      both kinds of lateness grow so
    late    the largest lag of late; each turn makes it a part in ``FADES`` smaller
    margin  late * sqrt(max(ahead, 2 * places)), at most what all places bring at once, or two
            standard deviations of the count ``ahead``

``longest_s`` is the wait with that margin, which few calls exceed: who refuses a call at once uses
it.  Others passing a call (of a higher priority, say) do not make the backend late: their turns
are among the ``k``.

Invariants: ``longest_s`` is at least ``wait_s`` but for the doubt; neither is told from fewer
samples, or less time, than said; ``FORGOTTEN_S`` seconds without anybody waiting, and all is
forgotten.
Known weakness: a backend that becomes slow is believed to be as fast as before until its new speed
weighs in; calls let in meanwhile wait up to their deadlines.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

LEAST_TURNS: Final = 16
LEAST_S: Final = 1.0
ROUNDS: Final = 2
MOST_TURNS: Final = 512
"""Enough, however many places there are."""
MANY_TURNS: Final = 256
WINDOW_S: Final = 10.0
FADES: Final = 2048
FORGOTTEN_S: Final = 60.0


class DrainRate:
    """Places that come to those who wait, per second."""

    __slots__ = ("_busy_at", "_idle_at", "_late", "_old_s", "_old_turns", "_s", "_turns", "total")

    def __init__(self) -> None:
        self.total = 0
        """Turns since the beginning, of which a call keeps the number when it comes."""
        self._turns = self._old_turns = 0
        self._s = self._old_s = 0.0
        self._late = 0.0
        self._busy_at: float | None = None
        self._idle_at = 0.0

    def begin(self, now: float) -> None:
        """Somebody waits from now on."""
        if self._busy_at is None:
            if now - self._idle_at > FORGOTTEN_S:
                self._turns = self._old_turns = 0
                self._s = self._old_s = self._late = 0.0
            self._busy_at = now

    def end(self, now: float) -> None:
        """Nobody waits any more."""
        if self._busy_at is not None:
            self._s += max(now - self._busy_at, 0.0)
            self._busy_at, self._idle_at = None, now

    def turn(self, now: float, places: int, since: float, total: int) -> None:
        """One that has waited ``since`` then has a place, one of ``places``."""
        self.total += 1
        self._turns += 1
        self._late -= self._late / FADES
        self.lags(now, places, since, total)
        busy_s = self._busy_s(now)
        new = self._turns >= MANY_TURNS or busy_s >= WINDOW_S
        if new and self._turns >= enough(places) and busy_s >= LEAST_S:
            self._old_turns, self._old_s = self._turns, busy_s
            self._turns, self._s = 0, 0.0
            if self._busy_at is not None:
                self._busy_at = now

    def lags(self, now: float, places: int, since: float, total: int) -> None:
        """One that came when there had been ``total`` turns still waits, or does not any more."""
        rate = self.likely(now, places)
        if rate:
            came = self.total - total
            lag = (rate * (now - since) - came) / sqrt(max(came, 2 * places, 1))
            self._late = max(self._late, lag)

    def likely(self, now: float, places: int) -> float:
        """Places per second; 0: not known."""
        turns, seconds = self._seen(now)
        return turns / seconds if turns >= enough(places) and seconds >= LEAST_S else 0.0

    def wait_s(self, ahead: float, now: float, places: int) -> float:
        """How long until so many places came, likely; 0: not known."""
        rate = self.likely(now, places)
        return ahead / rate if rate else 0.0

    def longest_s(self, ahead: float, now: float, places: int) -> float:
        """How long that takes when it takes long; 0: not known."""
        rate = self.likely(now, places)
        if not rate:
            return 0.0
        turns, _ = self._seen(now)
        doubt = 2.0 * sqrt(max(1 / turns - 1 / MANY_TURNS, 0.0))
        margin = min(self._late * sqrt(max(ahead, 2 * places)), max(places, 2 * sqrt(ahead)))
        return (ahead + margin) / (rate * (1 + doubt))

    def _seen(self, now: float) -> tuple[int, float]:
        return self._old_turns + self._turns, self._old_s + self._busy_s(now)

    def _busy_s(self, now: float) -> float:
        return self._s + (max(now - self._busy_at, 0.0) if self._busy_at is not None else 0.0)


def enough(places: int) -> int:
    """How many samples tell a rate of so many places."""
    return min(max(LEAST_TURNS, ROUNDS * places), MOST_TURNS)
