"""How many pass a call in a queue, against those who were in front of it when it came.

Calls of a higher priority, of tenants that are due more, or with an earlier deadline come later and
are served before.  How many will is seen on those of the same priority whose wait is over::

    passed    places that came while it waited / places until its own, as it was told at first

Invariants: at least 1; sums fade by a part in ``FADES`` with each call, so old loads are forgotten.
Known weakness: the calls of a priority are taken together, whoever's they are.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.types import Priority

FADES: Final = 128


class Overtaking:
    """What calls of each priority met."""

    __slots__ = ("_ahead", "_came")

    def __init__(self) -> None:
        self._ahead = [0.0 for _ in Priority]
        self._came = [0.0 for _ in Priority]

    def over(self, level: int, ahead: float, came: int) -> None:
        """A wait is over, however: of ``ahead`` places at first; so many came, its own included."""
        self._ahead[level] += ahead - self._ahead[level] / FADES
        self._came[level] += came - self._came[level] / FADES

    def passed(self, level: int) -> float:
        """How many times as many places as at first a call's own is away."""
        ahead = self._ahead[level]
        return max(self._came[level] / ahead, 1.0) if ahead else 1.0
