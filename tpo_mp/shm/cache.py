"""Answers that all processes of a host find again: one log per seat, one index over all of them.

::

    byte 0   header, written once before any child exists, but for the generation     64 bytes
             0 magic "TPOCACHE"  8 layout  16 logs  24 bytes of a log  32 sets
             40 generation, raised under the ledger's lock of row 4
    then     seat lines, written by the seat's occupant only                          64 bytes each
             +0 claimed   +8 hits  +16 misses  +24 kept  +32 evicted
             of the second tier  +40 hits  +48 misses  +56 unavailable
    then     index: sets x 8 lines, written by anybody                                64 bytes each
             +0 key (16)  +16 place  +24 log u32  +28 length u32  +32 expires_ms
             +40 generation  +48 kept_ms  +56 in a set's first line: how many lines were taken
    then     logs, each written by its seat's occupant only
             records, at multiples of 64:
             +0 crc32 of all that follows u32   +4 length u32   +8 key (16)
             +24 expires_ms   +32 generation    +40 size, a multiple of 64    +48 the answer

A place is the number of bytes that were ever written to a log before it: it never comes again, and
lies at ``place % bytes of a log``.  No record lies across the end of its log; what is left there
is covered by a record without an answer.

Keeping, by the log's one writer: 1 raise ``claimed`` past the new record  2 write the record
3 write the line.  Finding, by anybody and without a lock: 1 copy the set  2 copy the record that a
line with the key names  3 check.  The line is a hint only.  An answer is one when its record, after
it was copied, is still less than a log behind ``claimed``, carries the key, the line's instant and
the present generation, and has the right checksum.  Everything else is a miss.

What others see if a process dies, or is stopped, between any two lines:
  after 1    room that nothing names; the next occupant goes on behind it
  within 2   the same: the line that names it was not written yet
  within 3   a line of two halves, which names no record with its key: a miss, until replaced
Two processes that write one line at a time leave one of the two, or such halves; two that take a
line of one set at a time may take the same.

Eviction is being overwritten: by the log's next lap, or by a line of the same set, whose lines are
taken in turn.  ``flush`` raises the generation, and nothing of the old one is found again; an
answer is kept under the generation in which it was asked for.

Memory order: ``claimed`` before the record before the line when writing; the record before
``claimed`` when reading (see ``fence``).

Invariants: an answer is found under its own key only, whole, before its time is over and not after
a flush; every seat's log and the index are of fixed size; nothing waits for anybody.
Known weakness: the seats of spare processes have logs that lie idle, so about half of the memory
works on a host of two workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from struct import Struct
from time import monotonic
from typing import Final
from zlib import crc32

from tpo_mp.errors import Shed
from tpo_mp.types import AnswerMark, CacheCounts, TierCounts, TierResult

from .fence import FENCED, fence
from .rows import RowTable
from .segment import Segment

MAGIC: Final = int.from_bytes(b"TPOCACHE", "little")
LAYOUT: Final = 1
LOCK_ROW: Final = 4
LINE_BYTES: Final = 64
WAYS: Final = 8
KEY_BYTES: Final = 16
HEAD_BYTES: Final = 48
SET_BYTES: Final = WAYS * LINE_BYTES
_TAKEN_AT: Final = 56
_TURNS: Final = WAYS << 32
_SEATS_AT: Final = 64
_GENERATION: Final = 5
_HITS, _MISSES, _KEPT, _EVICTED = 1, 2, 3, 4
_TIER: Final = 5
_LINE: Final = Struct("<16sQIIQQQ")
_HINT: Final = Struct("<QIIQQ")
_RECORD: Final = Struct("<I16sQQQ")
_WHOLE: Final = Struct("<I44s")
_PIECE: Final = 256


class CacheSegment:
    """The memory; see ``SharedCache`` for what a process does with it."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.fd = segment.fd
        self.words = segment.words
        self.map = segment.map
        self.logs, self.log_bytes, self.sets = segment.words[2:5].tolist()
        self.index_at = _SEATS_AT + LINE_BYTES * self.logs
        self.logs_at = self.index_at + SET_BYTES * self.sets

    @classmethod
    def create(cls, seats: int, size: int) -> CacheSegment:
        """Make the host's (supervisor only): ``size`` bytes of answers in all, for ``seats``."""
        log_bytes = max(size // seats // LINE_BYTES, 64) * LINE_BYTES
        # One line for each kilobyte of answers.
        sets = 1 << max((log_bytes * seats // 1024 // WAYS).bit_length() - 1, 3)
        total = _SEATS_AT + LINE_BYTES * seats + SET_BYTES * sets + log_bytes * seats
        segment = Segment.create("tpo-cache", total)
        return cls(segment.signed(MAGIC, LAYOUT, seats, log_bytes, sets))

    @classmethod
    def attach(cls, fd: int) -> CacheSegment:
        """Map an inherited one; raises ``Fault`` when it is not ours."""
        segment = Segment.attach(fd, os.fstat(fd).st_size)
        return cls(segment.checked("cache", MAGIC, LAYOUT))

    def close(self) -> None:
        """Unmap."""
        self._segment.close()


class SharedCache:
    """The ``AnswerCache`` of one process."""

    def __init__(
        self, segment: CacheSegment, table: RowTable, *, seat: int, clock: Callable[[], float]
    ) -> None:
        """Take the seat's log, behind whatever its last occupant claimed."""
        self._segment = segment
        self._table = table
        self._clock = clock
        self._words, self._map = segment.words, segment.map
        self._seat = seat
        self._log_bytes = segment.log_bytes
        self._index_at, self._mask = segment.index_at, segment.sets - 1
        self._mine = (_SEATS_AT + LINE_BYTES * seat) // 8
        self._log_at = segment.logs_at + segment.log_bytes * seat
        self._tail = self._words[self._mine]
        self.most = segment.log_bytes // 8 - HEAD_BYTES

    @classmethod
    def of_host(cls, fd: int, table: RowTable, seat: int) -> SharedCache:
        """That of a process on a seat, which inherited it."""
        return cls(CacheSegment.attach(fd), table, seat=seat, clock=monotonic)

    @property
    def generation(self) -> int:
        """Changes with every flush."""
        return self._words[_GENERATION]

    def find(self, key: bytes) -> bytes | None:
        """The answer kept under a key of 16 bytes; ``None``: there is none."""
        found = self.find_marked(key)
        return None if found is None else found[0]

    def find_marked(self, key: bytes) -> tuple[bytes, AnswerMark] | None:
        """The same, and where it lies."""
        at = self._index_at + (int.from_bytes(key[:4], "little") & self._mask) * SET_BYTES
        lines = self._map[at : at + SET_BYTES]
        found = lines.find(key)
        while found >= 0:
            if not found % LINE_BYTES:
                answer = self._read(lines, found, key)
                if answer is not None:
                    return answer, self._mark(at, lines, found)
            found = lines.find(key, found + 1)
        return None

    def still(self, mark: AnswerMark) -> bool:
        """Whether ``find`` would answer what it did when this was made.

        The line says the same, so its record is the one that was proven: a place never comes again.
        """
        line_at, line, place, claimed, generation, expires_ms = mark
        words = self._words
        return (
            self._map[line_at : line_at + _TAKEN_AT] == line
            and expires_ms > self._clock() * 1e3
            and 0 < words[claimed] - place <= self._log_bytes
            and generation == words[_GENERATION]
        )

    def count(self, *, hit: bool) -> None:
        """Count one call that was looked up."""
        self._words[self._mine + (_HITS if hit else _MISSES)] += 1

    def keep(self, key: bytes, answer: bytes, ttl_s: float, generation: int) -> bool:
        """Keep an answer for a time; False when it is too long, or there was a flush meanwhile."""
        words, length, log_bytes = self._words, len(answer), self._log_bytes
        if length > self.most or generation != words[_GENERATION]:
            return False
        mine, places = self._mine, self._map
        now_ms = int(self._clock() * 1e3)
        expires_ms = now_ms + int(ttl_s * 1e3)
        size = (HEAD_BYTES + LINE_BYTES - 1 + length) // LINE_BYTES * LINE_BYTES
        place = words[mine]
        offset = place % log_bytes
        if log_bytes - offset < size:
            room = log_bytes - offset
            self._claim(place + room, now_ms)
            self._write(offset, bytes(KEY_BYTES), b"", 0, 0, room)
            place, offset = place + room, 0
        self._claim(place + size, now_ms)
        self._write(offset, key, answer, expires_ms, generation, size)
        if FENCED:
            fence()
        at = self._index_at + (int.from_bytes(key[:4], "little") & self._mask) * SET_BYTES
        lines = places[at : at + SET_BYTES]
        line = lines.find(key)
        if line < 0 or line % LINE_BYTES:  # not its own of before: the next in turn
            turn = (at + _TAKEN_AT) // 8
            taken = words[turn]
            words[turn] = (taken + 1) % _TURNS
            line = taken % WAYS * LINE_BYTES
            if self._lives(lines, line, now_ms):
                words[mine + _EVICTED] += 1
        _LINE.pack_into(
            places, at + line, key, place, self._seat, length, expires_ms, generation, now_ms
        )
        words[mine + _KEPT] += 1
        return True

    def flush(self) -> None:
        """Forget every answer; raises ``Shed`` when another process holds the lock."""
        with self._table.lock(LOCK_ROW) as held:
            if held is None:
                raise Shed("the cache is being flushed by another process; try again",
                           reason="cache_busy", retry_after_s=1)  # fmt: skip
            self._words[_GENERATION] += 1

    def counts(self) -> CacheCounts:
        """What all processes of the host counted since it started."""
        lines = range(_SEATS_AT // 8, self._index_at // 8, LINE_BYTES // 8)
        hits, misses, kept, evicted = (
            sum(self._words[line + place] for line in lines)
            for place in (_HITS, _MISSES, _KEPT, _EVICTED)
        )
        return CacheCounts(hits, misses, kept, evicted)

    def count_tier(self, result: TierResult) -> None:
        """Count one call that was looked up in the second tier."""
        self._words[self._mine + _TIER + min(result, TierResult.BAD)] += 1

    def tier_counts(self) -> TierCounts:
        """What all processes of the host counted of it."""
        lines = range(_SEATS_AT // 8, self._index_at // 8, LINE_BYTES // 8)
        return TierCounts(*(sum(self._words[line + _TIER + n] for line in lines) for n in range(3)))

    def sizes(self) -> Iterator[int]:
        """The bytes of each answer that can be found now; 0 now and then, to let others run."""
        size = _PIECE * LINE_BYTES
        end = self._segment.logs_at
        for at in range(self._index_at, end, size):
            yield 0
            piece = self._map[at : min(at + size, end)]
            now_ms = int(self._clock() * 1e3)
            for line in range(0, len(piece), LINE_BYTES):
                length = _HINT.unpack_from(piece, line + KEY_BYTES)[2]
                if length and self._lives(piece, line, now_ms):
                    yield length

    # -- inside ---------------------------------------------------------------------------------

    def _mark(self, at: int, lines: bytes, line: int) -> AnswerMark:
        """What tells whether this line of a set names the same record later."""
        place, log, _, expires_ms, generation = _HINT.unpack_from(lines, line + KEY_BYTES)
        claimed = (_SEATS_AT + LINE_BYTES * log) // 8
        said = lines[line : line + _TAKEN_AT]
        return AnswerMark(at + line, said, place, claimed, generation, expires_ms)

    def _read(self, lines: bytes, line: int, key: bytes) -> bytes | None:
        """The answer that a line names, if it is one."""
        place, log, length, expires_ms, generation = _HINT.unpack_from(lines, line + KEY_BYTES)
        words, log_bytes = self._words, self._log_bytes
        if (
            generation != words[_GENERATION]
            or log >= self._segment.logs
            or expires_ms <= self._clock() * 1e3
        ):
            return None
        offset, claimed = place % log_bytes, (_SEATS_AT + LINE_BYTES * log) // 8
        end = offset + HEAD_BYTES + length
        if end > log_bytes or words[claimed] - place > log_bytes:
            return None
        start = self._segment.logs_at + log_bytes * log
        record = self._map[start + offset : start + end]
        if FENCED:
            fence()
        if not 0 < words[claimed] - place <= log_bytes:
            return None  # overwritten before, or while it was copied
        crc, found = int.from_bytes(record[:4], "little"), record[8:24]
        if found != key or crc32(record[4:]) != crc:
            return None
        proven = _RECORD.unpack_from(record, 4)
        return (
            record[HEAD_BYTES:] if (proven[0], *proven[2:4]) == (length, expires_ms, generation)
            else None
        )  # fmt: skip

    def _claim(self, end: int, now_ms: int) -> None:
        """Take the log's room before ``end`` from what lies there; count what was not over."""
        words, lap, tail = self._words, end - self._log_bytes, self._tail
        if tail < lap:
            while tail < lap:
                _, _, expires_ms, of, room = _RECORD.unpack_from(
                    self._map, self._log_at + tail % self._log_bytes + 4
                )
                if expires_ms > now_ms and of == words[_GENERATION]:
                    words[self._mine + _EVICTED] += 1
                tail += room
            self._tail = tail
        words[self._mine] = end
        if FENCED:
            fence()

    def _write(
        self, offset: int, key: bytes, answer: bytes, expires_ms: int, generation: int, size: int
    ) -> None:
        head = _RECORD.pack(len(answer), key, expires_ms, generation, size)
        at = self._log_at + offset
        _WHOLE.pack_into(self._map, at, crc32(answer, crc32(head)), head)
        at += HEAD_BYTES
        self._map[at : at + len(answer)] = answer

    def _lives(self, lines: bytes, line: int, now_ms: int) -> bool:
        """Whether a line names something that may still be found."""
        place, log, _, expires_ms, generation = _HINT.unpack_from(lines, line + KEY_BYTES)
        if expires_ms <= now_ms or generation != self._words[_GENERATION]:
            return False
        if log >= self._segment.logs:
            return False
        behind: int = self._words[(_SEATS_AT + LINE_BYTES * log) // 8] - place
        return 0 < behind <= self._log_bytes
