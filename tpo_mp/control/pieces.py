"""Puts values together again that were too long for one ring record."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

MAX_OPEN = 64
MAX_VALUE = 40 << 20
MAX_HELD = 128 << 20


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

    def add(self, key: Hashable, piece: bytes, more: bool) -> bytes | None:
        """Take a piece; the whole value once ``more`` is false, ``None`` before."""
        half = self._open.get(key)
        if half is None and not more:
            return piece
        if half is None:
            half = self._open[key] = _Half()
        half.parts.append(piece)
        half.size += len(piece)
        self._held += len(piece)
        if not more:
            self.drop(key)
            return b"".join(half.parts)
        if half.size > MAX_VALUE:
            self._give_up(key)
        while len(self._open) > MAX_OPEN or self._held > MAX_HELD:
            self._give_up(next(iter(self._open)))
        return None

    def drop(self, key: Hashable) -> None:
        """Forget a value's pieces."""
        half = self._open.pop(key, None)
        if half is not None:
            self._held -= half.size

    def _give_up(self, key: Hashable) -> None:
        self.drop(key)
        self.given_up += 1
