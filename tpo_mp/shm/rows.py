"""Rows that several processes update: one 64-byte line each, changed under a kernel lock.

::

    table    0   magic u64 | 8  layout u64 | 16  rows u64 | pad to 64
             64 + row * 64   row
    row      0   version u32   even: whole; odd: being written
             4   crc32 u32     of the payload; version and crc are one word, stored at once
             8   payload       56 bytes, meaning and repair rule are the feature's
    locks    a file of its own; byte ``row`` of it is locked by whoever may write row ``row``

A row whose first word is 0 was never written: its payload is 56 zero bytes.
Only the holder of the row's lock writes it.  Steps of a write, and what others see if the writer
dies after each:

1. word = (version + 1, 0), odd: readers answer ``None``, the next holder calls the repair rule;
2. payload, in any order and perhaps in part: the same;
3. word = (version + 2, crc): the new row.

The kernel drops a dead process's locks, never a stopped one's: ``lock`` asks without waiting, tries
again for at most 200 µs (or as long as its caller allows), then answers ``None`` (counted in
``contended``) and the caller gives its conservative answer.  The repair rule gets the 56 torn bytes
and answers 56 good ones; without a rule the row is zeroed.  It runs before the holder sees the row;
``Row.repaired`` tells of it.  An even row whose CRC is wrong is treated as torn.

Memory order: none is relied on.  A reader accepts a copy only if its CRC is that of the word it
read, so a payload seen before its word, or after it, is "not now"; a holder is ordered after the
holder before by the lock's system calls.

Invariants: no ``await`` under a lock; several locks are taken in
ascending rows; whoever writes a row under another row's lock (``under``) has all who write it do
that.  ``fcntl`` locks belong to the *process* and vanish when it closes any descriptor
of the file: the lock file is never mapped, duplicated, reopened or closed, and a process has one
``RowTable`` per lock file.
Known weakness: a process that is stopped while it holds a row makes that row conservative for all
until it goes on or is killed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from pathlib import Path
from time import monotonic_ns, sleep
from typing import TypeAlias
from zlib import crc32

from .segment import Segment, portable

MAGIC = int.from_bytes(b"TPOROWS1", "little")
LAYOUT = 1
HEADER = 64
ROW_BYTES = 64
PAYLOAD_BYTES = 56
LOCK_WAIT_NS = 200_000
NAP_S = 100e-6
READ_TRIES = 16
BLANK = bytes(PAYLOAD_BYTES)

_ODD = 1
_VERSION = 0xFFFFFFFF
_CRC_SHIFT = 32
_WORDS = ROW_BYTES // 8

Repair: TypeAlias = Callable[[bytes], bytes]


class Row:
    """A row whose lock this process holds."""

    __slots__ = ("_at", "_map", "_word", "_words", "repaired")

    def __init__(self, memory: mmap.mmap, words: memoryview, row: int) -> None:
        self._map = memory
        self._words = words
        self._at = HEADER + row * ROW_BYTES
        self._word = self._at // 8
        self.repaired = False

    def read(self) -> bytes:
        """Copy the payload."""
        at = self._at
        return self._map[at + 8 : at + ROW_BYTES]

    def write(self, payload: bytes) -> None:
        """Replace the payload (exactly 56 bytes)."""
        if len(payload) != PAYLOAD_BYTES:
            raise ValueError(f"a row's payload is {PAYLOAD_BYTES} bytes, not {len(payload)}")
        words, word, at = self._words, self._word, self._at
        odd = (words[word] & _VERSION) | _ODD
        words[word] = odd
        self._map[at + 8 : at + ROW_BYTES] = payload
        even = (odd + 1 & _VERSION) or 2
        words[word] = even | crc32(payload) << _CRC_SHIFT

    def mend(self, repair: Repair | None) -> None:
        """Repair the row if its last writer died in it (the lock's first act)."""
        word = self._words[self._word]
        if word == 0:
            return
        payload = self.read()
        if word & _ODD or crc32(payload) != word >> _CRC_SHIFT:
            self.repaired = True
            self.write(repair(payload) if repair else BLANK)


class RowLock:
    """One attempt at one row: ``with`` gives the row, or ``None`` when another holds it."""

    __slots__ = ("_held", "_repair", "_row", "_table", "_wait_ns")

    def __init__(self, table: RowTable, row: int, repair: Repair | None, wait_ns: int) -> None:
        self._table = table
        self._row = row
        self._repair = repair
        self._wait_ns = wait_ns
        self._held = False

    def __enter__(self) -> Row | None:
        table = self._table
        if not table.acquire(self._row, self._wait_ns):
            table.contended += 1
            return None
        self._held = True
        row = Row(table.map, table.words, self._row)
        try:
            row.mend(self._repair)
        except BaseException:
            self.__exit__()
            raise
        table.repaired += row.repaired
        return row

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._held = False
            self._table.release(self._row)


class RowTable:
    """The host's shared rows; ``contended`` and ``repaired`` count in this process."""

    def __init__(self, segment: Segment, locks_fd: int, rows: int) -> None:
        self._segment = segment
        self._held: set[int] = set()
        self.fd = segment.fd
        self.locks_fd = locks_fd
        self.rows = rows
        self.map = segment.map
        self.words = segment.words
        self.contended = 0
        self.repaired = 0

    @staticmethod
    def size(rows: int) -> int:
        """Bytes of a table."""
        return HEADER + rows * ROW_BYTES

    @classmethod
    def create(cls, rows: int) -> RowTable:
        """Make table and lock file (supervisor only)."""
        segment = Segment.create("tpo-rows", cls.size(rows)).signed(MAGIC, LAYOUT, rows)
        return cls(segment, _lock_file(), rows)

    @classmethod
    def attach(cls, fd: int, locks_fd: int, rows: int) -> RowTable:
        """Map an inherited table; once per process.  Raises ``Fault`` when it is not ours."""
        segment = Segment.attach(fd, cls.size(rows)).checked("row table", MAGIC, LAYOUT, rows)
        return cls(segment, locks_fd, rows)

    def lock(self, row: int, repair: Repair | None = None, wait_ns: int = LOCK_WAIT_NS) -> RowLock:
        """Ask for a row: ``with table.lock(i) as row: if row is None: <conservative answer>``.

        ``repair`` turns 56 torn bytes into good ones (default: zeros).  Not re-entrant.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"no row {row} of {self.rows}")
        return RowLock(self, row, repair, wait_ns)

    def under(self, row: int) -> Row:
        """A row that is guarded by the lock of another one, which this process holds."""
        return Row(self.map, self.words, row)

    def acquire(self, row: int, wait_ns: int = LOCK_WAIT_NS) -> bool:
        """Take a row's lock; gives up after ``wait_ns``."""
        if row in self._held:
            raise RuntimeError(f"row {row} is already held by this process")
        give_up_at = 0
        while True:
            try:
                lockf(self.locks_fd, LOCK_EX | LOCK_NB, 1, row)
            except (BlockingIOError, PermissionError):
                now = monotonic_ns()
                give_up_at = give_up_at or now + wait_ns
                if now >= give_up_at:
                    return False
                if give_up_at - now > wait_ns - LOCK_WAIT_NS:
                    os.sched_yield()
                else:
                    # The holder waits for a core; it may be this one.
                    sleep(NAP_S)
            else:
                self._held.add(row)
                return True

    def release(self, row: int) -> None:
        """Give a row's lock back."""
        self._held.discard(row)
        lockf(self.locks_fd, LOCK_UN, 1, row)

    def read(self, row: int) -> bytes | None:
        """Copy a row without a lock; ``None`` while it is written or when it was left torn."""
        words, at = self.words, HEADER + row * ROW_BYTES
        for _ in range(READ_TRIES):
            word = words[at // 8]
            payload = self.map[at + 8 : at + ROW_BYTES]
            if word == 0:
                return BLANK
            if not word & _ODD and crc32(payload) == word >> _CRC_SHIFT:
                return payload
        return None

    def close(self) -> None:
        """Unmap and close; every lock of this process on this file is dropped with it."""
        self._segment.close()
        os.close(self.locks_fd)


def _lock_file() -> int:
    if not portable():
        return os.memfd_create("tpo-locks", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix="tpo-locks-")
    Path(path).unlink()
    return fd
