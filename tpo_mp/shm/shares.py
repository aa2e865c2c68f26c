"""What each process of a host has taken of something that there is only so much of, by name.

::

    0      magic u64 | layout u64 | seats u64 | pad to 64
    64     names       1 024 x 16 bytes   blake2b of the line's name; zeros: no line yet
    then   epochs      u64 per seat       whose numbers stand in the seat's words
    then   lines       1 024 x (2 + 2 x seats) u64
           +0 wanted   how many wait for it: a hint, written by whoever keeps the queue
           +1 limit    how much there is of it, where the host finds that out; written by whoever
                       judged it last
           +2 held     one word per seat
           +  kept     one word per seat: whether its occupant may still use the line

A seat's words are written by its occupant only.  Who wants more holds the ledger's lock of row 2,
adds up what all seats hold, and raises its own word by what is left of the limit; so nobody takes
what another is just taking, and the sum never exceeds the limit.  Who gives back just lowers its
own word: others may read the higher number for a moment, and take less.

A seat counts only while its epoch word is that of the plane's seat line.  The supervisor raises the
line's epoch when it reaps a process, which is thereby without anything, and there is nothing to
clean up; the next occupant zeroes the seat's words and then writes its own epoch.

What others see if a process dies between any two lines: a word as it was or as it became, and
after its reaping neither; a line whose name was not written yet is found by the next who asks; its
locks are dropped by the kernel.

When no line is free, one that no living seat keeps is given to the new name, under the lock of row
2, under which also lines are found and kept: a process keeps a line from before it has an object of
it until after it has none, and only then its part of it is 0 again.  The words of wanted and limit
are zeroed before the name is written, so who dies between leaves a line of its old name.

Memory order: a word raised is followed by the release of the lock, and whoever adds up has taken
it since, a pair that every platform orders; the rest is single words.

Invariants: the sum of a line is at most the limit that was said when it was last raised; taking
and giving are never more than what is there; a line changes its name only while nobody living has
an object of it.
Known weakness: at most 1 024 names are in use at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final
from weakref import WeakValueDictionary, finalize

from tpo_mp.errors import ConfigError

from .plane import Plane
from .rows import RowTable
from .structure import SeatStructure

MAGIC: Final = int.from_bytes(b"TPOSHARE", "little")
LAYOUT: Final = 3
LINES: Final = 1024
NAME_BYTES: Final = 16
LOCK_ROW: Final = 2
_NAMES_AT: Final = 64
_EPOCHS: Final = (_NAMES_AT + LINES * NAME_BYTES) // 8
_NOBODY: Final = bytes(NAME_BYTES)
_HEAD: Final = 2
NAMING_NS: Final = 50_000_000
"""How long a process that serves waits for another one that names things."""
BOOT_NS: Final = 5_000_000_000
"""As long as one that does not serve yet, for the other one may stand still."""
NAMES_HELD: Final = "names_held"


class ShareSegment(SeatStructure):
    """The memory of all lines; see ``SharedShares`` for what a process does with it."""

    NAME = "shares"
    HEAD = (MAGIC, LAYOUT)

    @staticmethod
    def size(seats: int) -> int:
        """Bytes of the segment."""
        return (_EPOCHS + seats + LINES * _line_words(seats)) * 8


class SharedShares:
    """The ``Shares`` of one process."""

    def __init__(
        self,
        segment: ShareSegment,
        table: RowTable,
        *,
        seat: int,
        epoch: int,
        epoch_of: Callable[[int], int],
    ) -> None:
        """Take the seat; ``epoch_of`` tells which occupant of a seat is alive now."""
        self._segment = segment
        self._table = table
        self._epoch_of = epoch_of
        self._lines: WeakValueDictionary[str, SharedShare] = WeakValueDictionary()
        self.seat = seat
        self.patience_ns = BOOT_NS
        words, seats = segment.words, segment.seats
        words[_EPOCHS + seat] = 0  # none of the last occupant's words counts from here on
        first = _EPOCHS + seats
        for line in range(LINES):
            at = first + line * _line_words(seats) + _HEAD + seat
            words[at] = words[at + seats] = 0
        words[_EPOCHS + seat] = epoch

    @classmethod
    def of_host(cls, fd: int, table: RowTable, plane: Plane, seat: int) -> SharedShares:
        """Those that a process on a seat inherited."""
        words, places = plane.words, [plane.seat(n).base for n in range(plane.seats)]
        return cls(
            ShareSegment.attach(fd, plane.seats),
            table,
            seat=seat,
            epoch=words[places[seat]],
            epoch_of=lambda n: words[places[n]],
        )

    def of(self, name: str) -> SharedShare:
        """The line of a name, made when first asked for; raises ``ConfigError`` at the cap."""
        line = self._lines.get(name)
        if line is None:
            segment = self._segment
            at = self._at(self._number(name))
            line = self._lines[name] = SharedShare(segment, self, self._table, at)
            held = at + _HEAD + self.seat
            finalize(line, _leave, segment.words, held, held + segment.seats).atexit = False
        return line

    def living(self) -> list[int]:
        """The seats whose words count."""
        words = self._segment.words
        return [
            seat
            for seat in range(self._segment.seats)
            if (epoch := words[_EPOCHS + seat]) and epoch == self._epoch_of(seat)
        ]

    def _at(self, line: int) -> int:
        seats = self._segment.seats
        return _EPOCHS + seats + line * _line_words(seats)

    def _number(self, name: str) -> int:
        """Which line has this name; from now on this process keeps it."""
        digest = blake2b(name.encode(), digest_size=NAME_BYTES).digest()
        with self._table.lock(LOCK_ROW, wait_ns=self.patience_ns) as held:
            if held is None:
                text = "another process holds the names of shares; try again"
                raise ConfigError(text, reason=NAMES_HELD)
            memory = self._segment.map
            for line in range(LINES):
                at = _NAMES_AT + line * NAME_BYTES
                found = memory[at : at + NAME_BYTES]
                if found in (digest, _NOBODY):
                    break
            else:
                line, found = self._unkept(), b""
            words, first = self._segment.words, self._at(line)
            if found != digest:
                words[first] = words[first + 1] = 0
                at = _NAMES_AT + line * NAME_BYTES
                memory[at : at + NAME_BYTES] = digest
            words[first + _HEAD + self._segment.seats + self.seat] = 1
            return line

    def _unkept(self) -> int:
        """A line that nobody living has an object of."""
        words, seats, living = self._segment.words, self._segment.seats, self.living()
        for line in range(LINES):
            first = self._at(line) + _HEAD
            if not any(words[first + n] or words[first + seats + n] for n in living):
                return line
        raise ConfigError(f"more than {LINES} names of backends are in use")


class SharedShare:
    """What this process and the others hold of one thing; implements ``ports.Share``."""

    __slots__ = ("__weakref__", "_at", "_mine", "_segment", "_shares", "_table")

    def __init__(
        self, segment: ShareSegment, shares: SharedShares, table: RowTable, at: int
    ) -> None:
        self._segment = segment
        self._shares = shares
        self._table = table
        self._at = at
        self._mine = at + _HEAD + shares.seat

    @property
    def held(self) -> int:
        """What this process holds."""
        return self._segment.words[self._mine]

    @property
    def wanted(self) -> int:
        """How many wait, as whoever keeps their queue last said."""
        return self._segment.words[self._at]

    @wanted.setter
    def wanted(self, n: int) -> None:
        self._segment.words[self._at] = n

    @property
    def limit(self) -> int:
        """How much there is of it, as whoever judged it last said; 0: nobody did."""
        return self._segment.words[self._at + 1]

    @limit.setter
    def limit(self, n: int) -> None:
        self._segment.words[self._at + 1] = n

    def total(self) -> int:
        """What all living processes hold."""
        words, first = self._segment.words, self._at + _HEAD
        return sum(words[first + seat] for seat in self._shares.living())

    def take(self, n: int, limit: int) -> int:
        """Take up to ``n`` of what is left of ``limit``; answers how many (0 when in doubt)."""
        with self._table.lock(LOCK_ROW) as held:
            if held is None:
                return 0
            taken = min(n, limit - self.total())
            if taken > 0:
                self._segment.words[self._mine] += taken
        return max(taken, 0)

    def add(self, n: int) -> None:
        """Hold more, whatever the limit: it was kept for this process, or came before the limit."""
        self._segment.words[self._mine] += n

    def give(self, n: int) -> None:
        """Give back."""
        self._segment.words[self._mine] -= n


def _line_words(seats: int) -> int:
    return _HEAD + 2 * seats


def _leave(words: memoryview, held: int, kept: int) -> None:
    """Nobody here has an object of the line any more, so nobody can give back."""
    try:
        words[held] = 0
        words[kept] = 0
    except ValueError:  # unmapped meanwhile
        return
