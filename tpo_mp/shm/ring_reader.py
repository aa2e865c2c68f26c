"""The consumer's end of a ring: load tail, check and copy, move head, hand over; see ``ring``.

Invariants: never raises on damaged memory; delivers nothing twice and nothing false; stalls its
loop for at most ``RETRY_NS`` per damaged record.
"""

from __future__ import annotations

import time
from zlib import crc32

from . import failpoints
from .fence import FENCED, fence
from .ring_layout import (
    DATA,
    EPOCH,
    GLANCE,
    HEAD,
    HEADER_BYTES,
    M32,
    PADDING,
    PADDING_BYTES,
    PROOF,
    RETRY_NS,
    TAIL,
    UNPACK,
    epoch_word,
    proof,
    spread,
)
from .segment import Segment


class RingReader:
    """The consumer's end of one ring; exactly one exists per ring."""

    __slots__ = (
        "_capacity", "_doubted", "_epoch", "_epoch_at", "_epoch_seen", "_first", "_head",
        "_head_at", "_map", "_mask", "_mix", "_most", "_proof_at", "_tail_at", "_words",
        "corrupt", "stale",
    )  # fmt: skip

    def __init__(self, segment: Segment, at: int, capacity: int) -> None:
        self._map = segment.map
        self._words = segment.words
        self._capacity = capacity
        self._mask = capacity - 1
        self._first = at + DATA
        self._tail_at = at // 8 + TAIL
        self._epoch_at = at // 8 + EPOCH
        self._proof_at = at // 8 + PROOF
        self._head_at = at // 8 + HEAD
        self._most = capacity // 4 - HEADER_BYTES
        self._head = self._words[self._head_at]
        self._doubted = -1
        self._epoch = 0
        self._mix = 0
        self._epoch_seen = -1
        self.corrupt = 0
        self.stale = 0

    def pending(self) -> bool:
        """True when ``drain`` has something to look at.

        Damage may keep it true: loop on what ``drain`` answers, never on this.
        """
        return self._words[self._tail_at] != self._head

    def drain(self, limit: int = 256) -> list[bytes]:
        """Take up to ``limit`` records; call again while it answers ``limit`` of them.

        Head has moved beyond all of them when it returns.  Never raises on damaged memory.
        """
        words, head = self._words, self._head
        tail = words[self._tail_at]
        if tail == head:
            if words[self._head_at] != head:
                words[self._head_at] = head
            return []
        if not 0 < tail - head <= self._capacity or tail & 15:
            tail = self._reconcile(tail)
            head = self._head
        if FENCED:
            fence()
        if words[self._epoch_at] != self._epoch_seen:
            self._note_epoch()
        area, first, mask, most, mix = self._map, self._first, self._mask, self._most, self._mix
        found: list[bytes] = []
        append = found.append
        while head < tail and len(found) < limit:
            at = first + (head & mask)
            n, crc = GLANCE(area, at)
            if 0 < n <= most:
                payload = area[at + 16 : at + 16 + n]
                if crc32(payload, head ^ mix) == crc:
                    append(payload)
                    head += n + 31 & -16
                    continue
            size, other = self._examine(head)
            if not size:
                self.corrupt += 1
                head = tail
                break
            if other:
                append(other)
            head += size
        if FENCED:
            fence()
        words[self._head_at] = self._head = head
        if failpoints.ACTIVE:
            failpoints.hit("ring.in_consume")
        return found

    def _examine(self, head: int) -> tuple[int, bytes]:
        """Size and payload of an unusual record: padding and stale have no payload, bad no size."""
        at = self._first + (head & self._mask)
        left = self._capacity - (head & self._mask)
        give_up_at = time.perf_counter_ns() + RETRY_NS
        while True:
            n, sequence, epoch, crc = UNPACK(self._map, at)
            start = head ^ spread(epoch)
            if sequence == head & M32:
                if n == PADDING and crc == crc32(PADDING_BYTES, start):
                    return left, b""
                if 0 < n <= self._most and n + 16 <= left:
                    payload = self._map[at + 16 : at + 16 + n]
                    if crc == crc32(payload, start):
                        return n + 31 & -16, self._admit(payload, epoch)
            if time.perf_counter_ns() > give_up_at:
                return 0, b""
            if FENCED:
                fence()

    def _admit(self, payload: bytes, epoch: int) -> bytes:
        """Nothing instead of the payload, when its epoch is older than the ring's."""
        if 0 < self._epoch - epoch & M32 < 1 << 31:
            self.stale += 1
            return b""
        return payload

    def _note_epoch(self) -> None:
        """Take over the ring's epoch word if it is whole."""
        word = self._epoch_seen = self._words[self._epoch_at]
        epoch = word & M32
        if word != epoch_word(epoch):
            self.corrupt += 1
            return
        self._epoch = epoch
        self._mix = spread(epoch)

    def _reconcile(self, tail: int) -> int:
        """Decide on a tail that does not follow head, as the table above says."""
        if self._words[self._proof_at] == proof(tail) and not tail & 15:
            self.corrupt += 1
            self._head = tail
        elif tail != self._doubted:
            self._doubted = tail
            self.corrupt += 1
        return self._head
