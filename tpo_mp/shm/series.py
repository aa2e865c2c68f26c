"""The memory of metrics: per seat a block of cells and the append-only directory naming them.

::

    arena    0  magic u64 | 8  layout u64 | 16  seats u64 | pad to 64
             64 + seat * BLOCK_BYTES  block
    block    0       epoch u64     last occupation that opened this block
             8       used u64      bytes of directory that are published
             64      cells         4 096 words of 8 bytes, native order
             32 832  directory     256 KiB of records, append-only
    record   length u32 | crc32 u32 | payload | pad to 8
    payload  msgpack [name, help, kind, labels, bounds, first cell]
    cells    0       series that found no room (counter)
             1..63   sink: what those series write; never read
             64..    series, in directory order
    series   counter    one u64; a bound, if it has one, is what a scrape divides it by
             gauge      one f64
             histogram  one u64 per bound (le), one for +Inf, then the sum in millionths (u64)

One process, the seat's occupant, writes a block; ``retire`` is the supervisor's, after it reaped
the occupant.  Steps of a new series, and what is left if the writer dies after each:

1. record written beyond ``used``: nobody sees it, the next occupant writes over it;
2. ``used`` moved: the series exists with zero cells (cells beyond the directory are always zero).

Steps of an occupation: cut the directory at its first bad record, zero all cells beyond it, zero
the gauges, write ``epoch``.  Each step may be repeated, so the next occupant just does them again;
a reader meanwhile sees gauges at zero early.  Counters and histograms go on where they stood: a
host's totals never fall because a process died.  An observation is two stores (bucket, sum); a
writer killed between them leaves a sum that misses one value.  The count is the sum of buckets and
so never disagrees with them.

Memory order: none is relied on but that an aligned word is stored whole.  A record seen before
its bytes fails its CRC and is read at the next scrape; a cell seen late is a count seen late.

Invariants: a record is never changed or moved once published, except that a new occupant cuts a
directory at its first bad record; a series' cells lie within the block.
Known weakness: a flipped bit in a record costs its block all series made after it.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Literal, TypeAlias
from zlib import crc32

import msgspec

MAGIC = int.from_bytes(b"TPOMETR1", "little")
LAYOUT = 1
ARENA_HEADER = 64
BLOCK_HEADER = 64
CELLS = 4096
DIRECTORY_BYTES = 256 << 10
BLOCK_BYTES = BLOCK_HEADER + CELLS * 8 + DIRECTORY_BYTES
OVERFLOW_CELL = 0
SINK_CELL = 1
FIRST_CELL = 64
MAX_BOUNDS = FIRST_CELL - SINK_CELL - 2
MICRO = 1e6
NANO = 1e9

EPOCH_WORD, USED_WORD = 0, 1
_RECORD = Layout("=II")

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[tuple[str, str], ...]


class SeriesEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One directory record: a series and where its cells begin."""

    name: str
    help: str
    kind: Kind
    labels: Labels
    bounds: tuple[float, ...]
    first: int

    @property
    def width(self) -> int:
        """How many cells it has."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SeriesEntry).decode


class SeriesDirectory:
    """One block's published records, parsed as they appear and read anew at each epoch."""

    __slots__ = ("_area", "_epoch", "_words", "entries", "next_cell", "used")

    def __init__(self, words: memoryview, area: memoryview) -> None:
        self._words = words
        self._area = area
        self._forget(words[EPOCH_WORD])

    def _forget(self, epoch: int) -> None:
        self._epoch = epoch
        self.entries: list[SeriesEntry] = []
        self.used = 0
        self.next_cell = FIRST_CELL

    def refresh(self) -> None:
        """Read the records published since; stop in front of one that is not whole."""
        words = self._words
        published = min(words[USED_WORD], DIRECTORY_BYTES)
        if words[EPOCH_WORD] != self._epoch or published < self.used:
            self._forget(words[EPOCH_WORD])
        while self.used < published:
            entry = self._record(self.used, published)
            if entry is None:
                return
            self.entries.append(entry)
            self.next_cell += entry.width

    def _record(self, at: int, published: int) -> SeriesEntry | None:
        if at + _RECORD.size > published:
            return None
        length, crc = _RECORD.unpack_from(self._area, at)
        start = at + _RECORD.size
        payload = self._area[start : start + length]
        if start + length > published or crc32(payload) != crc:
            return None
        try:
            entry = _decode(payload)
        except msgspec.DecodeError:
            return None
        if entry.first != self.next_cell or entry.first + entry.width > CELLS:
            return None
        self.used = start + (length + 7 & ~7)
        return entry

    def append(self, entry: SeriesEntry) -> bool:
        """Publish one record; ``False`` when cells or directory are full."""
        payload = _encode(entry)
        start = self.used + _RECORD.size
        end = start + (len(payload) + 7 & ~7)
        if end > DIRECTORY_BYTES or entry.first + entry.width > CELLS:
            return False
        self._area[start : start + len(payload)] = payload
        _RECORD.pack_into(self._area, self.used, len(payload), crc32(payload))
        self._words[USED_WORD] = end
        self.used = end
        self.entries.append(entry)
        self.next_cell += entry.width
        return True

    def cut(self) -> None:
        """Drop what ``refresh`` could not read (a new occupant's first step)."""
        self._words[USED_WORD] = self.used


class BlockView:
    """Views of one seat's block."""

    __slots__ = ("cells", "directory", "levels", "words")

    def __init__(self, buf: memoryview, seat: int) -> None:
        at = ARENA_HEADER + seat * BLOCK_BYTES
        cells = buf[at + BLOCK_HEADER : at + BLOCK_HEADER + CELLS * 8]
        self.words = buf[at : at + BLOCK_HEADER].cast("Q")
        self.cells = cells.cast("Q")
        self.levels = cells.cast("d")
        self.directory = SeriesDirectory(
            self.words, buf[at + BLOCK_HEADER + CELLS * 8 : at + BLOCK_BYTES]
        )

    def zero_gauges(self) -> None:
        """Set every gauge of the directory to zero."""
        for entry in self.directory.entries:
            if entry.kind == "gauge":
                self.levels[entry.first] = 0.0
