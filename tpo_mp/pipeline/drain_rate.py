"""How fast a queue is served, as far as enough of it was seen to say so.

Only time in which somebody waits counts: an empty queue says nothing of its speed.  Samples are
kept as two counts, the one that grows and the one before it, so the memory is the same at any speed
and old samples are gone once as many new ones were seen.

A rate is told from ``LEAST_TURNS`` samples and ``LEAST_S`` seconds on, and from ``ROUNDS`` times as
many samples as there are places: places that were taken together come back together, and a rate
measured between two such moments would be any number.  From few samples the rate is uncertain, so
there are two of it: the likely one, and the highest that is still plausible (two standard
deviations of a Poisson count); who would refuse a call at once uses the latter.

Invariants: the plausible rate is at least the likely one; neither is told from fewer samples, or
less time, than said; ``FORGOTTEN_S`` seconds without anybody waiting, and all is forgotten.
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
FORGOTTEN_S: Final = 60.0


class DrainRate:
    """Places that come to those who wait, per second."""

    __slots__ = ("_busy_at", "_idle_at", "_old_s", "_old_turns", "_s", "_turns")

    def __init__(self) -> None:
        self._turns = self._old_turns = 0
        self._s = self._old_s = 0.0
        self._busy_at: float | None = None
        self._idle_at = 0.0

    def begin(self, now: float) -> None:
        """Somebody waits from now on."""
        if self._busy_at is None:
            if now - self._idle_at > FORGOTTEN_S:
                self._turns = self._old_turns = 0
                self._s = self._old_s = 0.0
            self._busy_at = now

    def end(self, now: float) -> None:
        """Nobody waits any more."""
        if self._busy_at is not None:
            self._s += max(now - self._busy_at, 0.0)
            self._busy_at, self._idle_at = None, now

    def turn(self, now: float, places: int) -> None:
        """One who waited has a place, one of ``places``."""
        self._turns += 1
        busy_s = self._busy_s(now)
        if self._turns >= enough(places) and busy_s >= LEAST_S:
            self._old_turns, self._old_s = self._turns, busy_s
            self._turns, self._s = 0, 0.0
            if self._busy_at is not None:
                self._busy_at = now

    def likely(self, now: float, places: int) -> float:
        """Places per second; 0: not known."""
        turns, seconds = self._seen(now)
        return turns / seconds if turns >= enough(places) and seconds >= LEAST_S else 0.0

    def plausible(self, now: float, places: int) -> float:
        """The highest rate that what was seen still allows; 0: not known."""
        turns, seconds = self._seen(now)
        if turns < enough(places) or seconds < LEAST_S:
            return 0.0
        return (turns + 2.0 * sqrt(turns)) / seconds

    def _seen(self, now: float) -> tuple[int, float]:
        return self._old_turns + self._turns, self._old_s + self._busy_s(now)

    def _busy_s(self, now: float) -> float:
        return self._s + (max(now - self._busy_at, 0.0) if self._busy_at is not None else 0.0)


def enough(places: int) -> int:
    """How many samples tell a rate of so many places."""
    return min(max(LEAST_TURNS, ROUNDS * places), MOST_TURNS)
