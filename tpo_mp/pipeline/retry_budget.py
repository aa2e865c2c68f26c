"""How many further tries a host may make: a share of its traffic and a small floor.

Everything is counted over about the last ``SPAN_S`` seconds (each count fades by the factor e in
that time), in one row of the ledger, so that all workers of a host spend from the same purse::

    cells    calls | retries of the same backend | moves in vain | when that held (CLOCK_MONOTONIC)

A retry is let through while ``retries + 1 <= share * calls + floor``; it is counted before it is
made, in the same update.  Hence, in any time T that begins with nothing counted, a host makes at
most ``share`` retries per call and ``floor * (1 + T / SPAN_S)`` more, however many workers it has.

Going on to another backend is free as long as it helps.  Only of a call that failed on all it was
taken to are the moves counted, and while these are more than the same bound, calls stay where they
are.  So a dead backend beside a living one costs no errors, and when all are dead each is soon
asked little more than once per call.

A call costs one addition here; the ledger is told of every ``SETTLED_AT`` of them, or earlier by a
call that fails (as if they had come evenly since it was told last).

Invariants: what may be spent is never more than what all workers counted would allow; a ledger
that cannot be asked lets nothing through.
Known weakness: another worker's last calls, fewer than ``SETTLED_AT``, are not seen yet, and are
lost when it dies: the bound is lower by their share.  Moves are counted when they have failed: as
many calls as are under way when the last backend dies are moved once more.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from typing import Final

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Ledger

SPAN_S: Final = 10.0
SETTLED_AT: Final = 64
_ALMOST: Final = 1e-9


class RetryBudget:
    """One worker's purse into which all workers of the host pay."""

    __slots__ = ("_clock", "_floor", "_ledger", "_name", "_settled_at", "_share", "_unsettled")

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        *,
        share: float,
        floor: int,
        name: str = "retry:budget",
    ) -> None:
        """``share`` of the calls may be retried, and ``floor`` retries besides."""
        self._ledger = ledger
        self._name = name
        self._clock = clock
        self._share = share
        self._floor = floor
        self._unsettled = 0
        self._settled_at = clock()

    def count(self) -> None:
        """Count one call."""
        self._unsettled += 1
        if self._unsettled >= SETTLED_AT:
            self._change(lambda cells: cells)

    def take(self) -> bool:
        """Spend one retry of the same backend, if there is one left."""
        allowed = False

        def spend(cells: Cells) -> Cells:
            nonlocal allowed
            calls, retries, vain, at = cells
            allowed = retries + 1 <= self._share * calls + self._floor + _ALMOST
            return (calls, retries + allowed, vain, at)

        return self._change(spend) and allowed

    def may_move(self) -> bool:
        """Whether going on to another backend has helped of late, or was seldom needed."""
        allowed = False

        def look(cells: Cells) -> Cells:
            nonlocal allowed
            calls, _, vain, _ = cells
            allowed = vain + 1 <= self._share * calls + self._floor + _ALMOST
            return cells

        return self._change(look) and allowed

    def in_vain(self, moves: int) -> None:
        """Count the moves of a call that failed in spite of them."""
        self._change(lambda cells: (cells[0], cells[1], cells[2] + moves, cells[3]))

    def _change(self, change: Callable[[Cells], Cells]) -> bool:
        """Fade the counts, add this worker's calls and change them; False: it cannot be done."""
        now = self._clock()
        calls = self._unsettled * _kept_of_even(now - self._settled_at)

        def settle(cells: Cells) -> Cells:
            kept = _kept(now - cells[3])
            # Another worker's clock may have been read later.
            faded = (cells[0] * kept + calls, cells[1] * kept, cells[2] * kept, max(now, cells[3]))
            return change(faded)

        try:
            self._ledger.update(self._name, settle)
        except Shed:
            return False
        self._unsettled = 0
        self._settled_at = now
        return True


def _kept(passed_s: float) -> float:
    """What is left of a count after so long."""
    return exp(-max(passed_s, 0.0) / SPAN_S)


def _kept_of_even(passed_s: float) -> float:
    """What is left, per piece, of what came evenly in the last ``passed_s``: the fading's mean."""
    spans = max(passed_s, 0.0) / SPAN_S
    return (1 - exp(-spans)) / spans if spans > 1e-6 else 1.0
