"""How each backend stands, as control found it by asking, and as an operator wants it.

Two rows of the ledger for each backend, so every process of a host sees the same, and what was
found is still there when the process that found it is dead::

    health:BACKEND   cells 0  state   a number of ``Fitness``; written by control only
                           1  since   CLOCK_MONOTONIC when it became that
                           2  until   the same, until when it may be believed
                           3  why     the place of a reason in ``REASONS``
    drain:BACKEND    cells 0  1: it gets no new calls; written by whoever an operator asks
                           1  since   CLOCK_MONOTONIC of that

Control writes ``health`` after each answer, and what nobody renews lapses: a backend that was down
when control was lost is asked again after ``until``.  A backend that is ready stays so.  What
readers see if a writer dies in the middle is the ledger's affair: the row as it was.

Invariants: these functions are pure; a row that is not there says ``UNKNOWN``, which keeps nobody
from asking.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from tpo_mp.ports import Cells

REASONS: Final = (
    "", "starting", "connect", "timeout", "status", "loading", "bad_answer",
)  # fmt: skip


class Fitness(IntEnum):
    """What a backend is fit for."""

    UNKNOWN = 0
    """Nobody asked it, or not lately."""
    STARTING = 1
    """It did not answer yet, or says that it loads."""
    READY = 2
    DRAINING = 3
    """It finishes what it has and gets nothing new."""
    DOWN = 4


AWAY: Final = frozenset({Fitness.STARTING, Fitness.DOWN})
"""Those that are asked only when no other is left."""


class HealthRow(NamedTuple):
    """One backend's two rows in words."""

    state: Fitness = Fitness.UNKNOWN
    since: float = 0.0
    until: float = 0.0
    why: str = ""
    draining_since: float = 0.0

    def standing(self, now: float) -> Fitness:
        """What it is fit for now; what is bad and old is not believed."""
        if self.draining_since:
            return Fitness.DRAINING
        if self.state != Fitness.READY and now > self.until:
            return Fitness.UNKNOWN
        return self.state


def health_row(backend: str) -> str:
    """The name of what control found."""
    return f"health:{backend}"


def drain_row(backend: str) -> str:
    """The name of what an operator wants."""
    return f"drain:{backend}"


def read_standing(health: Cells, drain: Cells) -> HealthRow:
    """Read both rows."""
    state = int(health[0])
    known = Fitness(state) if 0 <= state <= Fitness.DOWN else Fitness.UNKNOWN
    why = REASONS[int(health[3]) % len(REASONS)]
    return HealthRow(known, health[1], health[2], why, drain[1] if drain[0] else 0.0)


def health_cells(state: Fitness, since: float, until: float, why: str) -> Cells:
    """Write what was found."""
    return (float(state), since, until, float(REASONS.index(why)))


def drain_cells(now: float, *, on: bool) -> Cells:
    """Write what is wanted; 0 seconds would be no time."""
    return (1.0, max(now, 1e-9), 0.0, 0.0) if on else (0.0, 0.0, 0.0, 0.0)
