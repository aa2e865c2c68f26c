"""The scores of a host in plain memory: the real structure, without segments and locks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import ScoreSegment, SharedScores
from tpo_mp.shm.segment import Segment


class _Plain:
    """Memory that looks like a segment."""

    fd = -1

    def __init__(self, size: int) -> None:
        self.map = bytearray(size)
        self.buf = memoryview(self.map)
        self.words = self.buf.cast("Q")


class _Unlocked:
    """A table whose locks are always free."""

    def lock(self, row: int, **options: Any) -> AbstractContextManager[object]:
        """Hold it."""
        return nullcontext(self)


class FakeScores:
    """One host's; ``seat(n)`` is what the process on a seat has."""

    def __init__(self, seats: int = 2) -> None:
        memory = cast("Segment", _Plain(ScoreSegment.size(seats)))
        self._segment = ScoreSegment(memory, seats)

    def seat(self, seat: int) -> SharedScores:
        """A seat's present occupant."""
        return SharedScores(self._segment, cast("RowTable", _Unlocked()), seat)
