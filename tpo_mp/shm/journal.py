"""A bounded log of the host: the newest entries of all processes, in the order they came.

::

    0      magic u64 | layout u64 | data bytes u64 | pad to 64
    64     head u64 | tail u64 | pad to 128       bytes ever written; first of the oldest entry
    128    data, 1 MiB, written round and round
    entry  length u32 (0xFFFFFFFF: nothing more before the end of the data) | crc32 u32 | payload,
           padded to 8 bytes; an entry never goes over the end

Only the holder of the ledger's row 1 writes or reads.  Steps of an append, and what the next holder
sees if the writer dies after each:

1. tail = first entry that is not in the way: the oldest entries are gone;
2. entry, behind head: the same;
3. head = end of the entry: it is there.

Memory order: none is relied on; the lock's system calls order one holder after the other.

Invariants: tail and head are ends of entries; what lies between them is whole entries only.
Known weakness: an entry that finds the lock held for too long is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from zlib import crc32

from tpo_mp.errors import Shed
from tpo_mp.ports import Counter

from .ledger import PATIENCE_NS
from .rows import RowTable
from .structure import FixedStructure

MAGIC = int.from_bytes(b"TPOJRNL1", "little")
LAYOUT = 1
DATA_AT = 128
DATA_BYTES = 1 << 20
MOST_ENTRY_BYTES = 128 << 10
LOCK_ROW = 1

_HEAD, _TAIL = 8, 9
_ENTRY = Layout("=II")
_SKIP = 0xFFFFFFFF


class JournalSegment(FixedStructure):
    """The memory of the log; see ``SharedJournal`` for what a process does with it."""

    NAME = "journal"
    HEAD = (MAGIC, LAYOUT, DATA_BYTES)
    SIZE = DATA_AT + DATA_BYTES


class SharedJournal:
    """The ``Journal`` of one process."""

    def __init__(self, segment: JournalSegment, table: RowTable, dropped: Counter) -> None:
        self._words = segment.words
        self._map = segment.map
        self._table = table
        self._dropped = dropped

    def append(self, entry: bytes) -> bool:
        """Add an entry; see ``ports.Journal``."""
        size = _padded(len(entry))
        if len(entry) > MOST_ENTRY_BYTES:
            self._dropped.inc()
            return False
        with self._table.lock(LOCK_ROW, wait_ns=PATIENCE_NS) as held:
            if held is None:
                self._dropped.inc()
                return False
            words, head = self._words, self._words[_HEAD]
            room = DATA_BYTES - head % DATA_BYTES
            start = head + room if room < size else head
            words[_TAIL] = self._tail_for(start + size)
            if start != head:
                _ENTRY.pack_into(self._map, DATA_AT + head % DATA_BYTES, _SKIP, 0)
            at = DATA_AT + start % DATA_BYTES
            _ENTRY.pack_into(self._map, at, len(entry), crc32(entry))
            self._map[at + 8 : at + 8 + len(entry)] = entry
            words[_HEAD] = start + size
        return True

    def entries(self) -> Iterator[bytes]:
        """Every entry there is now; see ``ports.Journal``."""
        with self._table.lock(LOCK_ROW, wait_ns=PATIENCE_NS) as held:
            if held is None:
                raise _busy()
            tail, head = self._words[_TAIL], self._words[_HEAD]
            data = self._map[DATA_AT : DATA_AT + DATA_BYTES]
        return _walk(data, tail, head)

    def clear(self) -> None:
        """Forget every entry; raises ``Shed`` when the lock is not to be had."""
        with self._table.lock(LOCK_ROW, wait_ns=PATIENCE_NS) as held:
            if held is None:
                raise _busy()
            self._words[_TAIL] = self._words[_HEAD]

    def _tail_for(self, end: int) -> int:
        """The oldest entry that may stay when the log reaches ``end``."""
        tail, head = self._words[_TAIL], self._words[_HEAD]
        while tail < head and end - tail > DATA_BYTES:
            length, _ = _ENTRY.unpack_from(self._map, DATA_AT + tail % DATA_BYTES)
            tail += DATA_BYTES - tail % DATA_BYTES if length == _SKIP else _padded(length)
        return min(tail, head)


def _walk(data: bytes, tail: int, head: int) -> Iterator[bytes]:
    """The entries of a copy."""
    while tail < head:
        length, crc = _ENTRY.unpack_from(data, tail % DATA_BYTES)
        if length == _SKIP:
            tail += DATA_BYTES - tail % DATA_BYTES
            continue
        at = tail % DATA_BYTES + 8
        entry = data[at : at + length]
        if crc32(entry) == crc:
            yield entry
        tail += _padded(length)


def _padded(length: int) -> int:
    return 8 + (length + 7 & ~7)


def _busy() -> Shed:
    return Shed("a worker that does not run holds the journal", reason="journal_busy",
                retry_after_s=1)  # fmt: skip
