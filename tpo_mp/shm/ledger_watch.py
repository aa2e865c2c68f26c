"""Looks at rows of the ledger without a lock: a word per row while nothing has changed.

The layout is ``ledger``'s, the steps of a write are those of ``rows``.  A row's word holds version
and CRC and is stored at once, after the payload, so a watch that finds the word it knows need not
look at the payload: it is the one it knows.  Else it copies the payload and believes it only if
the CRC is that of the word read before it.

What is answered while another process writes a row, or after it died in the middle of that: the
numbers as they were before that write.  They were true until then, the write is not over; whoever
changes the row next mends it, and its word tells.  A row that the ledger gave to another name is
asked for again, under the lock (``find``), and begins at zeros.

Memory order: the CRC decides, not the order.  On a machine that shows stores late (Apple silicon)
a word may be seen late, which is the same as having looked earlier; a payload seen before its word,
or after it, has another CRC and is not believed, so the old numbers are answered once more.

Invariants: what is answered is a whole state of each row that was current at some moment since
the peek before; one row's states are never seen in another order than they were written.
Known weakness: rows of one watch are not read at one moment; a word comes again after 2^31 writes
of one row between two peeks, if the CRC does too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import itemgetter
from struct import Struct as Layout
from typing import Any, Final
from zlib import crc32

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells

from .rows import HEADER, ROW_BYTES, RowTable

DIGEST_BYTES: Final = 12
PAYLOAD: Final = Layout("<12sd4dI")
_ODD: Final = 1
_CRC_SHIFT: Final = 32
_TRIES: Final = 2
_UNKNOWN: Final = -1
"""No row's word: the next peek looks again."""
_NOTHING: Final[Cells] = (0.0, 0.0, 0.0, 0.0)


def digest_of(name: str) -> bytes:
    """What a row keeps of its name."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class LedgerWatch:
    """Some names of the ledger; implements ``ports.Watch``."""

    __slots__ = ("_cells", "_digests", "_find", "_names", "_pick", "_rows", "_seen", "_shown",
                 "_table", "_words")  # fmt: skip

    def __init__(
        self, table: RowTable, names: Sequence[str], find: Callable[[int, str], int]
    ) -> None:
        """``find(place, name)`` answers a name's row, which it then has; raises ``Shed``."""
        self._table = table
        self._words = table.words
        self._find = find
        self._names = tuple(names)
        self._digests = tuple(digest_of(name) for name in names)
        self._rows = [_UNKNOWN] * len(names)
        self._seen: tuple[int, ...] = (_UNKNOWN,) * len(names)
        self._cells: tuple[Cells, ...] = (_NOTHING,) * len(names)
        self._pick: Callable[[memoryview], Any] = _none
        self._shown: object = ()
        """What ``_pick`` answers while nothing has changed; a single word stands by itself."""
        for place in range(len(names)):
            self._settle(place)
        self._look_at_rows()

    def peek(self) -> tuple[Cells, ...]:
        """The numbers of each name; the same tuple while nothing has changed."""
        return self._cells if self._pick(self._words) == self._shown else self._read()

    def _read(self) -> tuple[Cells, ...]:
        """Look at the rows whose words are others."""
        seen, cells, moved = list(self._seen), list(self._cells), False
        for place, row in enumerate(self._rows):
            word = self._words[(HEADER + row * ROW_BYTES) // 8] if row >= 0 else _UNKNOWN
            if word == seen[place] and word != _UNKNOWN:
                continue
            found = self._copy(row, self._digests[place]) if row >= 0 else None
            if found is None:
                self._settle(place)
                moved = True
                row = self._rows[place]
                found = self._copy(row, self._digests[place]) if row >= 0 else None
                if found is None:  # its set is held, or taken by others: zeros until it is found
                    seen[place], cells[place] = _UNKNOWN, _NOTHING
                    continue
            word, numbers = found
            if word != _UNKNOWN:
                seen[place], cells[place] = word, numbers
        if moved:
            self._look_at_rows()
        self._seen = tuple(seen)
        self._shown = self._seen if len(seen) > 1 else seen[0]
        fresh = tuple(cells)
        if fresh != self._cells:
            self._cells = fresh
        return self._cells

    def _copy(self, row: int, digest: bytes) -> tuple[int, Cells] | None:
        """A row's word and numbers; without a word: not now; ``None``: it is another name's."""
        at = HEADER + row * ROW_BYTES
        for _ in range(_TRIES):
            word = self._words[at // 8]
            if word & _ODD:
                break
            payload = self._table.map[at + 8 : at + ROW_BYTES]
            if crc32(payload) == word >> _CRC_SHIFT:
                if not payload.startswith(digest):
                    return None
                return word, PAYLOAD.unpack(payload)[2:6]
        return _UNKNOWN, _NOTHING

    def _settle(self, place: int) -> None:
        """Find a name's row, or leave it to the next peek."""
        try:
            self._rows[place] = self._find(place, self._names[place])
        except Shed:
            self._rows[place] = _UNKNOWN

    def _look_at_rows(self) -> None:
        if _UNKNOWN in self._rows:
            self._pick = _none
            return
        self._pick = itemgetter(*((HEADER + row * ROW_BYTES) // 8 for row in self._rows))


def _none(words: memoryview) -> None:
    """No words: look again."""
