"""Which process asks an upstream for what several may ask for at the same time.

::

    0     header   magic u64 | layout u64 | pad to 64
    64    sets x 8 lines of 32 bytes
          +0 name (16)   +16 claim u64: seat << 48 | epoch << 16 | two bytes of the name
          +24 in a set's first line: how many lines were taken
    locks bytes of the ledger's lock file behind its rows; byte ``set % 64`` of them is held by
          whoever gives a line of the set away

A claim holds while its seat has the occupant of that epoch, and that serves.  Looking for one needs
no lock: 1 find the name in a copy of the set  2 read its claim, which is one word and says for
which name it is.  Making one, under the lock: 1 look again  2 take a line that nobody holds  3 zero
its claim  4 write the name  5 write the claim.  Who has it gives it back by zeroing the claim,
without the lock: nobody else writes a line that is held.

What others see if a process dies between any two lines: before 5 a line that nobody holds; after it
a claim of an epoch that is over, which counts for nothing.

Lines of a set are taken in turn, so that a name stays written for a while after it was given back:
who claims it then is told that it was ``known``, and looks for what its last holder left.

Memory order: the name before its claim; a claim that is seen before its name says another name;
what a holder left for others before its claim is zero.

Invariants: at one instant one living process holds a name; nothing waits for longer than the lock
(``LOCK_NS``).
Known weakness: a set has eight lines; who finds them all held, or the lock, does without a claim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .fence import FENCED, fence
from .plane import Plane, SeatState
from .rows import RowTable
from .structure import FixedStructure

MAGIC: Final = int.from_bytes(b"TPOCLAIM", "little")
LAYOUT: Final = 2
SETS: Final = 4096
WAYS: Final = 8
LINE_BYTES: Final = 32
NAME_BYTES: Final = 16
LOCKS: Final = 64
LOCK_NS: Final = 500_000
NOBODY: Final = -1
_SET_BYTES: Final = WAYS * LINE_BYTES
_HEAD: Final = 64
_TAKEN_AT: Final = 24
_TURNS: Final = WAYS << 32
_SERVING: Final = (SeatState.READY, SeatState.DRAINING)
_SIZE: Final = _HEAD + SETS * _SET_BYTES


class ClaimSegment(FixedStructure):
    """The memory; see ``SharedClaims`` for what a process does with it."""

    NAME = "claims"
    HEAD = (MAGIC, LAYOUT)
    SIZE = _SIZE


class SharedClaims:
    """The claims as the occupant of one seat makes them."""

    def __init__(
        self,
        segment: ClaimSegment,
        table: RowTable,
        *,
        seat: int,
        epoch: int,
        serves: Callable[[int, int], bool],
    ) -> None:
        """``serves(seat, epoch)`` says whether that occupant is there and serves."""
        self._map, self._words = segment.map, segment.words
        self._table = table
        self._seat = seat
        self._serves = serves
        self._own = seat << 48 | (epoch & 0xFFFFFFFF) << 16
        self._held: dict[bytes, int] = {}
        self.known = False
        """Whether the name that was last asked for had been claimed before."""

    @classmethod
    def of_host(
        cls, segment: ClaimSegment, table: RowTable, plane: Plane, seat: int
    ) -> SharedClaims:
        """Those of the process on a seat."""

        def serves(other: int, epoch: int) -> bool:
            if other >= plane.seats:
                return False
            lines = plane.seat(other)
            return lines.epoch == epoch and lines.state in _SERVING

        return cls(segment, table, seat=seat, epoch=plane.seat(seat).epoch, serves=serves)

    def __len__(self) -> int:
        return len(self._held)

    def leader(self, name: bytes, lost: tuple[int, int] | None = None) -> int:
        """The seat that holds a name of 16 bytes: this one, if nobody did.

        ``lost`` is a seat and epoch whose claim counts for nothing.  ``NOBODY``: it cannot be
        claimed now.
        """
        at = _HEAD + int.from_bytes(name[:2], "little") % SETS * _SET_BYTES
        places, end = self._map, at + _SET_BYTES
        self.known = name in places[at:end]  # mostly a new name is written nowhere
        if self.known:
            seat = self._find(at, name, lost)
            if seat != NOBODY:
                return seat
        lock = self._table.rows + at // _SET_BYTES % LOCKS
        if not self._table.acquire(lock, LOCK_NS):
            return NOBODY
        try:
            if name in places[at:end]:
                seat = self._find(at, name, lost)
                self.known = True
                if seat != NOBODY:
                    return seat
                return self._claim(at, self._line(at, name), name)
            return self._claim(at, -1, name)
        finally:
            self._table.release(lock)

    def release(self, name: bytes) -> None:
        """Give a name back, if this process holds it."""
        word = self._held.pop(name, -1)
        if word >= 0 and self._words[word] == self._own | _tag(name):
            if FENCED:
                fence()
            self._words[word] = 0

    def _find(self, at: int, name: bytes, lost: tuple[int, int] | None) -> int:
        """The seat that holds a name."""
        line = self._line(at, name)
        if line < 0:
            return NOBODY
        claim = self._words[(line + NAME_BYTES) // 8]
        return claim >> 48 if claim & 0xFFFF == _tag(name) and self._holds(claim, lost) else NOBODY

    def _line(self, at: int, name: bytes) -> int:
        """Where a name is written in a set; -1: nowhere."""
        lines = self._map[at : at + _SET_BYTES]
        found = lines.find(name)
        while found % LINE_BYTES and found >= 0:
            found = lines.find(name, found + 1)
        return at + found if found >= 0 else -1

    def _holds(self, claim: int, lost: tuple[int, int] | None) -> bool:
        seat, epoch = claim >> 48, claim >> 16 & 0xFFFFFFFF
        return claim != 0 and (seat, epoch) != lost and self._serves(seat, epoch)

    def _claim(self, at: int, line: int, name: bytes) -> int:
        """Write a name over the line where it stands (-1: none), or over what nobody holds."""
        words = self._words
        if line < 0:
            turn = (at + _TAKEN_AT) // 8
            taken = words[turn]
            for number in range(taken, taken + WAYS):
                line = at + number % WAYS * LINE_BYTES
                claim = words[(line + NAME_BYTES) // 8]
                if claim == 0 or not self._holds(claim, None):
                    break
            else:
                return NOBODY
            words[turn] = (number + 1) % _TURNS
        word = (line + NAME_BYTES) // 8
        words[word] = 0
        self._map[line : line + NAME_BYTES] = name
        if FENCED:
            fence()
        words[word] = self._own | _tag(name)
        self._held[name] = word
        return self._seat


def _tag(name: bytes) -> int:
    return name[2] | name[3] << 8
