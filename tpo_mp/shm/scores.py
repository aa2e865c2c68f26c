"""How tries of each target end, counted by every process of a host and read by any.

::

    0      magic u64 | layout u64 | seats u64 | pad to 64
    64     names   256 x 16 bytes    blake2b of the line's name; zeros: no line yet
    then   per seat 256 lines of 218 words:
           +0   good_at   f64        CLOCK_MONOTONIC of the last good end; 0: none
           +1   bad_at    f64        the same of the last failure
           +2   reason    48 bytes   crc32 u32 | why it failed, ASCII, padded with zeros
           +8   totals    29 words   good | bad | busy | refused | 25 buckets of ``TOOK_S``
           +37  marks     6 x (stamp u64 | totals as they were at the beginning of that slice)
           +217 kept      whether the seat's occupant may still use the line

A slice is ten minutes of CLOCK_MONOTONIC and has the number ``stamp`` (1 is the first).  The first
thing that a seat counts in a slice is preceded by a copy of its totals into the mark of the slice;
so what it counted since some slice began is its totals less the oldest mark since then, and a seat
without a mark in that time has counted nothing in it.

One process, the seat's occupant, writes a seat's lines; the next occupant goes on where it stopped,
so nothing is forgotten with a process.  Names are given under the ledger's lock of row 3.

When no line is free, one that no living seat keeps is given to the new name, under the same lock,
under which lines are also found and kept; its words of all seats are zeroed before the name is
written, so who dies between leaves an old name that nobody asks for with fewer counts.  A process
keeps a line from before it has an object of it until after it has none.

What others see if the writer dies between any two lines: a word as it was or as it became; a time
without its count, or a count without its bucket; a reason whose CRC is wrong, which is shown as
none; a mark whose stamp is 0, which counts for nothing (the stamp is zeroed before the copy and
written after it), and is made again by the next occupant.

Memory order: none is relied on; a count seen late is a count read earlier.  Who sees a stamp before
its totals reads numbers that are off by one slice, until the next look.

Invariants: totals of a name never fall while anybody living keeps it; reading them writes nothing.
Known weakness: a window is as long as whole slices are, so of the last hour it has at least fifty
minutes; at most 256 targets are in use at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final
from weakref import WeakValueDictionary, finalize
from zlib import crc32

from tpo_mp.ports import Counter
from tpo_mp.types import TOOK_S, TryTally

from .plane import Plane, SeatState
from .rows import RowTable
from .segment import Segment
from .structure import SeatStructure

SCORES_REFUSED: Final = (
    "tpo_scores_refused_total",
    "Targets (backend and model) whose tries a worker does not count: there are 256 already.",
)
MAGIC: Final = int.from_bytes(b"TPOSCORE", "little")
LAYOUT: Final = 2
LINES: Final = 256
NAME_BYTES: Final = 16
LOCK_ROW: Final = 3
SLICE_S: Final = 600.0
SLICES: Final = 6
_NAMES_AT: Final = 64
_FIRST: Final = (_NAMES_AT + LINES * NAME_BYTES) // 8
_REASON: Final = 2
_REASON_BYTES: Final = 44
_TOTALS: Final = 8
_GOOD, _BAD, _BUSY, _REFUSED, _TIMES = range(5)
_TALLY: Final = _TIMES + len(TOOK_S) + 1
_MARKS: Final = _TOTALS + _TALLY
_KEPT: Final = _MARKS + SLICES * (1 + _TALLY)
_LINE: Final = _KEPT + 1
_MOST_REFUSED: Final = 4096
_NOBODY: Final = bytes(NAME_BYTES)
_NAMING_NS: Final = 50_000_000


class ScoreSegment(SeatStructure):
    """The memory of all lines; see ``SharedScores`` for what a process does with it."""

    NAME = "scores"
    HEAD = (MAGIC, LAYOUT)

    def __init__(self, segment: Segment, seats: int) -> None:
        super().__init__(segment, seats)
        self.times = segment.buf.cast("d")

    @staticmethod
    def size(seats: int) -> int:
        """Bytes of the segment."""
        return (_FIRST + seats * LINES * _LINE) * 8

    def close(self) -> None:
        """Unmap."""
        self.times.release()
        super().close()


class SharedScores:
    """The ``Scores`` of one process, which sits on ``seat``."""

    def __init__(
        self,
        segment: ScoreSegment,
        table: RowTable,
        seat: int,
        refused: Counter | None = None,
        living: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        """Take the seat; ``refused`` counts names that there is no line for, once each.

        ``living`` tells which seats have an occupant; all of them, where nobody says so.
        """
        self._refused = refused
        self._segment = segment
        self._table = table
        self._seat = seat
        self._living = living or (lambda: range(segment.seats))
        self._lines: WeakValueDictionary[str, SharedScore] = WeakValueDictionary()
        self._without: set[str] = set()
        for line in range(LINES):  # the last occupant's
            segment.words[_at(seat, line) + _KEPT] = 0

    @classmethod
    def of_host(
        cls, fd: int, table: RowTable, plane: Plane, seat: int, refused: Counter | None = None
    ) -> SharedScores:
        """Those that a process on a seat inherited."""
        seats = plane.seats

        def living() -> list[int]:
            return [n for n in range(seats) if plane.seat(n).state != SeatState.EMPTY]

        return cls(ScoreSegment.attach(fd, seats), table, seat, refused, living)

    def of(self, name: str) -> SharedScore | None:
        """The line of a target; ``None`` at the cap, and while nobody can be given one."""
        found = self._lines.get(name)
        if found is not None:
            return found
        number = self._number(name)
        if number is None:
            return None
        if number < 0:
            if self._refused is not None and name not in self._without:
                self._refused.inc()
            if len(self._without) < _MOST_REFUSED:
                self._without.add(name)
            return None
        self._without.discard(name)
        segment = self._segment
        found = self._lines[name] = SharedScore(segment, self._seat, number)
        kept = _at(self._seat, number) + _KEPT
        finalize(found, _leave, segment.words, kept).atexit = False
        return found

    def _number(self, name: str) -> int | None:
        """Which line it is, kept from now on; -1: there are no more, ``None``: not now."""
        digest = blake2b(name.encode(), digest_size=NAME_BYTES).digest()
        with self._table.lock(LOCK_ROW, wait_ns=_NAMING_NS) as held:
            if held is None:
                return None
            memory = self._segment.map
            names = memory[_NAMES_AT : _NAMES_AT + LINES * NAME_BYTES]
            known = [names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)]
            if digest in known:
                line = known.index(digest)
            else:
                line = known.index(_NOBODY) if _NOBODY in known else self._unkept()
                if line < 0:
                    return -1
                for seat in range(self._segment.seats):
                    at = _at(seat, line) * 8
                    memory[at : at + _LINE * 8] = bytes(_LINE * 8)
                at = _NAMES_AT + line * NAME_BYTES
                memory[at : at + NAME_BYTES] = digest
            self._segment.words[_at(self._seat, line) + _KEPT] = 1
            return line

    def _unkept(self) -> int:
        """A line that nobody living has an object of; -1: all have one."""
        words, living = self._segment.words, {*self._living(), self._seat}
        for line in range(LINES):
            if not any(words[_at(seat, line) + _KEPT] for seat in living):
                return line
        return -1


def _at(seat: int, line: int) -> int:
    """Where the words of a seat's line begin."""
    return _FIRST + (seat * LINES + line) * _LINE


def _leave(words: memoryview, kept: int) -> None:
    """Nobody here has an object of the line any more."""
    try:
        words[kept] = 0
    except ValueError:  # unmapped meanwhile
        return


class SharedScore:
    """One target: counts what this process sees, tells what all have seen."""

    __slots__ = ("__weakref__", "_at", "_goods", "_hits", "_seats", "_segment", "_times",
                 "_turns_at", "_words")  # fmt: skip

    def __init__(self, segment: ScoreSegment, seat: int, line: int) -> None:
        self._segment = segment
        self._words = segment.words
        self._times = segment.times
        self._seats = [_at(n, line) for n in range(segment.seats)]
        self._at = self._seats[seat]
        self._goods = self._at + _TOTALS + _GOOD
        self._hits = self._at + _TOTALS + _TIMES
        self._turns_at = 0.0

    # -- this process ---------------------------------------------------------------------------

    def good(self, took_s: float, now: float) -> None:
        """A try was answered, after ``took_s`` to the first byte."""
        if now >= self._turns_at:
            self._turn(now)
        words = self._words
        words[self._goods] += 1
        words[self._hits + bisect_left(TOOK_S, took_s)] += 1
        self._times[self._at] = now

    def bad(self, reason: str, now: float) -> None:
        """A try failed, and the backend is to blame."""
        if now >= self._turns_at:
            self._turn(now)
        words, at = self._words, self._at
        words[at + (_TOTALS + _BAD)] += 1
        text = reason.encode("ascii", "replace")[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
        start = (at + _REASON) * 8
        self._segment.map[start : start + 4 + _REASON_BYTES] = (
            crc32(text).to_bytes(4, "little") + text
        )
        self._times[at + 1] = now

    def busy(self, now: float) -> None:
        """It had no room for a try."""
        self._count(_BUSY, now)

    def refused(self, now: float) -> None:
        """It refused our key."""
        self._count(_REFUSED, now)

    def _count(self, what: int, now: float) -> None:
        if now >= self._turns_at:
            self._turn(now)
        self._words[self._at + _TOTALS + what] += 1

    def _turn(self, now: float) -> None:
        """Begin a slice."""
        number = int(now / SLICE_S) + 1
        self._turns_at = number * SLICE_S
        words, at = self._words, self._at
        mark = at + _MARKS + number % SLICES * (1 + _TALLY)
        if words[mark] == number:  # this seat's last occupant made it
            return
        words[mark] = 0
        totals = at + _TOTALS
        words[mark + 1 : mark + 1 + _TALLY] = words[totals : totals + _TALLY]
        words[mark] = number

    # -- the host -------------------------------------------------------------------------------

    def total(self) -> TryTally:
        """All that was counted since the host started."""
        words = self._words
        return _tally(
            words[at + _TOTALS : at + _TOTALS + _TALLY].tolist() for at in self._seats
        )  # fmt: skip

    def recent(self, now: float, slices: int = SLICES) -> TryTally:
        """What was counted in this slice of time and in those before it, ``slices`` in all."""
        first = int(now / SLICE_S) + 2 - slices
        return _tally(self._since(at, first) for at in self._seats)

    def _since(self, at: int, first: int) -> list[int]:
        words = self._words
        marks = range(at + _MARKS, at + _KEPT, 1 + _TALLY)
        stamped = [(words[mark], mark) for mark in marks if words[mark] >= max(first, 1)]
        if not stamped:
            return []
        mark = min(stamped)[1] + 1
        before = words[mark : mark + _TALLY].tolist()
        after = words[at + _TOTALS : at + _TOTALS + _TALLY].tolist()
        return [max(b - a, 0) for a, b in zip(before, after, strict=True)]

    def last_good_at(self) -> float:
        """When one was last answered (CLOCK_MONOTONIC); 0: never."""
        return max(self._times[at] for at in self._seats)

    def last_bad(self) -> tuple[float, str]:
        """When one last failed, and why; 0: never."""
        times = self._times
        at = max(self._seats, key=lambda at: times[at + 1])
        start = (at + _REASON) * 8
        said = self._segment.map[start : start + 4 + _REASON_BYTES]
        whole = int.from_bytes(said[:4], "little") == crc32(said[4:])
        reason = said[4:].rstrip(b"\0").decode("ascii", "replace") if whole else ""
        return times[at + 1], reason


def _tally(parts: Iterable[list[int]]) -> TryTally:
    sums = [0] * _TALLY
    for part in parts:
        if part:
            sums = [a + b for a, b in zip(sums, part, strict=True)]
    return TryTally(sums[_GOOD], sums[_BAD], sums[_BUSY], sums[_REFUSED], tuple(sums[_TIMES:]))
