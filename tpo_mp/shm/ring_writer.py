"""The producer's end of a ring: claim, copy, commit, publish, in that order; see ``ring``.

Invariants: never blocks; never reads what it wrote; its position in its own memory is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from . import failpoints
from .fence import FENCED, fence
from .ring_layout import (
    DATA,
    EPOCH,
    HEAD,
    HEADER_BYTES,
    M32,
    PACK,
    PADDING,
    PADDING_BYTES,
    PROOF,
    TAIL,
    epoch_word,
    proof,
    spread,
)
from .segment import Segment


class RingWriter:
    """The producer's end of one ring; exactly one exists per ring and epoch."""

    __slots__ = (
        "_capacity", "_epoch", "_epoch_at", "_first", "_head_at", "_lengths", "_map", "_mask",
        "_mix", "_proof_at", "_stop", "_tail", "_tail_at", "_words", "max_record",
    )  # fmt: skip

    def __init__(self, segment: Segment, at: int, capacity: int, epoch: int) -> None:
        self._map = segment.map
        self._words = segment.words
        self._lengths = segment.buf.cast("i")
        self._capacity = capacity
        self._mask = capacity - 1
        self._first = at + DATA
        self._tail_at = at // 8 + TAIL
        self._epoch_at = at // 8 + EPOCH
        self._proof_at = at // 8 + PROOF
        self._head_at = at // 8 + HEAD
        self._epoch = epoch
        self._mix = spread(epoch)
        self._tail = self._words[self._tail_at]
        self._stop = self._tail
        """Data records that end here or before need no look at head nor at the ring's edge."""
        self.max_record = capacity // 4 - HEADER_BYTES
        self.republish()

    def push(self, payload: bytes | memoryview, *, control: bool = False) -> bool:
        """Append one record; False: the ring is full.

        ``control`` records may use the reserved eighth.  Raises ``ValueError`` for an empty
        payload and for one longer than ``max_record``.
        """
        n = len(payload)
        tail = self._tail
        end = tail + (n + 31 & -16)
        if end > self._stop or n > self.max_record or not n:
            tail = self._make_room(n, control)
            if tail < 0:
                return False
            end = tail + (n + 31 & -16)
        at = self._first + (tail & self._mask)
        area = self._map
        crc = crc32(payload, tail ^ self._mix)
        PACK(area, at, -n, tail & M32, self._epoch, crc)
        area[at + 16 : at + 16 + n] = payload
        if FENCED:
            fence()
        self._lengths[at >> 2] = n
        if FENCED:
            fence()
        self._words[self._tail_at] = self._tail = end
        return True

    def push2(self, head: bytes, tail: bytes | memoryview, *, control: bool = False) -> bool:
        """Append ``head + tail`` as one record without joining them first; like ``push``."""
        middle = len(head)
        n = middle + len(tail)
        start = self._tail
        end = start + (n + 31 & -16)
        if end > self._stop or n > self.max_record or not n:
            start = self._make_room(n, control)
            if start < 0:
                return False
            end = start + (n + 31 & -16)
        at = self._first + (start & self._mask)
        area = self._map
        crc = crc32(tail, crc32(head, start ^ self._mix))
        PACK(area, at, -n, start & M32, self._epoch, crc)
        at += 16
        area[at : at + middle] = head
        area[at + middle : at + n] = tail
        if FENCED:
            fence()
        self._lengths[at - 16 >> 2] = n
        if FENCED:
            fence()
        self._words[self._tail_at] = self._tail = end
        return True

    def push_many(self, payloads: Sequence[bytes]) -> int:
        """Append data records up to the first that does not fit; answers how many went in.

        Tail moves once for all of them.
        """
        area, lengths, first, mask = self._map, self._lengths, self._first, self._mask
        mix, epoch, most = self._mix, self._epoch, self.max_record
        tail, stop = self._tail, self._stop
        done = 0
        try:
            for payload in payloads:
                n = len(payload)
                end = tail + (n + 31 & -16)
                if end > stop or n > most or not n:
                    self._tail = tail
                    start = self._make_room(n, control=False)
                    if start < 0:
                        break
                    tail, stop = start, self._stop
                    end = tail + (n + 31 & -16)
                at = first + (tail & mask)
                crc = crc32(payload, tail ^ mix)
                PACK(area, at, -n, tail & M32, epoch, crc)
                area[at + 16 : at + 16 + n] = payload
                if FENCED:
                    fence()
                lengths[at >> 2] = n
                tail = end
                done += 1
        finally:
            if FENCED:
                fence()
            self._words[self._tail_at] = self._tail = tail
        return done

    def free(self) -> int:
        """Bytes a data record may use now, its header of 16 included."""
        used = self._tail - self._words[self._head_at]
        if not 0 <= used <= self._capacity:
            return 0
        return max(0, self._capacity - self._capacity // 8 - used)

    def republish(self) -> None:
        """Store the producer's words again: heals damage to them; done once a lap in any case."""
        if FENCED:
            fence()
        self._words[self._epoch_at] = epoch_word(self._epoch)
        self._words[self._tail_at] = self._tail
        self._words[self._proof_at] = proof(self._tail)

    def _make_room(self, n: int, control: bool) -> int:
        """Find where ``n`` bytes may start, padding up to the edge if need be; -1: full."""
        if not 0 < n <= self.max_record:
            raise ValueError(f"a ring record has 1 to {self.max_record} bytes, not {n}")
        head, tail = self._words[self._head_at], self._tail
        self.republish()
        capacity = self._capacity
        if not 0 <= tail - head <= capacity:
            return -1
        edge = (tail | self._mask) + 1
        size = n + 31 & -16
        start = tail if tail + size <= edge else edge
        stop = head + capacity - capacity // 8
        if start + size > (head + capacity if control else stop):
            return -1
        if start != tail:
            crc = crc32(PADDING_BYTES, tail ^ self._mix)
            at = self._first + (tail & self._mask)
            PACK(self._map, at, PADDING, tail & M32, self._epoch, crc)
        self._stop = min(stop, (start | self._mask) + 1)
        return start


class FaultyRingWriter(RingWriter):
    """The same steps one by one with a failpoint between each; made only while a test asks."""

    __slots__ = ()

    def push(self, payload: bytes | memoryview, *, control: bool = False) -> bool:
        """Like ``RingWriter.push``, dying where told."""
        n = len(payload)
        tail = self._make_room(n, control)
        if tail < 0:
            return False
        at = self._first + (tail & self._mask)
        crc = crc32(payload, tail ^ self._mix)
        PACK(self._map, at, -n, tail & M32, self._epoch, crc)
        failpoints.hit("ring.claimed")
        half = n // 2
        self._map[at + 16 : at + 16 + half] = payload[:half]
        failpoints.hit("ring.payload_half")
        self._map[at + 16 + half : at + 16 + n] = payload[half:]
        fence()
        failpoints.hit("ring.before_commit")
        self._lengths[at >> 2] = n
        fence()
        failpoints.hit("ring.after_commit")
        self._words[self._tail_at] = self._tail = tail + (n + 31 & -16)
        return True

    def push2(self, head: bytes, tail: bytes | memoryview, *, control: bool = False) -> bool:
        """Like ``RingWriter.push2``, dying where told."""
        return self.push(head + bytes(tail), control=control)

    def push_many(self, payloads: Sequence[bytes]) -> int:
        """Like ``RingWriter.push_many``, dying where told."""
        for done, payload in enumerate(payloads):
            if not self.push(payload):
                return done
        return len(payloads)
