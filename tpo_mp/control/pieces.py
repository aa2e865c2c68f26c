"""Puts values together again that were too long for one ring record.

Each piece says where in its value it begins.  A value of which a piece is missing, because it was
given up or because an earlier control process took it, ends as ``Lost`` and never as a part.

Invariants: ``MAX_OPEN`` values of ``MAX_VALUE`` bytes each and of ``MAX_HELD`` together are held;
then the oldest is given up.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

MAX_OPEN = 64
MAX_VALUE = 40 << 20
MAX_HELD = 128 << 20


class Lost(Exception):
    """The last piece of a value came, and pieces before it are missing."""


@dataclass(slots=True)
class _Half:
    parts: list[bytes] = field(default_factory=list)
    size: int = 0


class Pieces:
    """Values of which pieces are missing; the oldest is given up when there are too many."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Half] = {}
        self._held = 0
        self.given_up = 0
        """Values that ended incomplete."""

    def add(self, key: Hashable, piece: bytes, *, more: bool, at: int) -> bytes | None:
        """Take the piece that begins at byte ``at``; the value, ``None`` while ``more`` follows.

        Raises ``Lost`` for the last piece of a value that is not whole.
        """
        if at == 0:
            self._drop(key)
            if not more:
                return piece
            self._open[key] = _Half()
        half = self._open.get(key)
        if half is None or half.size != at or at + len(piece) > MAX_VALUE:
            self._drop(key)
            if more:
                return None
            self.given_up += 1
            raise Lost
        half.parts.append(piece)
        half.size += len(piece)
        self._held += len(piece)
        if not more:
            self._drop(key)
            return b"".join(half.parts)
        while len(self._open) > MAX_OPEN or self._held > MAX_HELD:
            self._drop(next(iter(self._open)))
        return None

    def _drop(self, key: Hashable) -> None:
        half = self._open.pop(key, None)
        if half is not None:
            self._held -= half.size
