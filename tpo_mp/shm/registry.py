"""Which calls are open on this host, with their bodies: what outlives a dead process.

::

    file     0      magic u64 | layout u64 | seats u64 | slots per seat u64 | arena bytes u64
             40     run u64          random; names this registry and its copy on disk
             4 096  area of seat 0 | area of seat 1 | …        (worker seats only)
    area     slots * 1 024 B | arena (power of two, pages of 2 048 B)
    slot     0      started_ns u64   wall clock
             8      body_at u32      offset in the area: inside this slot, or in the arena
             12     body_length u32  bytes kept
             16     call_id          16 bytes
             32     meta_length u16
             34     inline           974 bytes: meta, then the body if both fit
             1 008  sent u64         bytes of a stream written to the client, as of its last count;
                                     all ones: not known
             1 016  epoch u32        of the occupant that opened it
             1 020  attempts u8
             1 021  flags u8         1 ASYNC · 2 STREAM · 4 TRUNCATED · 8 JOB
             1 022  state_before u8  written with ORPHANED
             1 023  state u8         the last byte, stored last

States and who moves them:

    0 FREE -> 1 ACCEPTED -> 2 SENT -> 3 FIRST_BYTE -> 0 FREE     the seat's occupant
    1, 2, 3 -> 6 SETTLED -> 0 FREE   the occupant: answered, its call record not pushed yet
    1, 2, 3 -> 7 OWING -> 0 FREE     the occupant: over, its dead letter not pushed yet
    1, 2, 3, 6, 7 -> 4 ORPHANED      supervisor, after it reaped the occupant (or at a cold start)
    4 -> 5 HARVESTED           control, after it wrote the dead letter, or a settled one's record
    5 -> 0 FREE                the seat's next occupant, before it uses slot and pages again

``open`` writes arena pages, then the slot front to back, the state last.  If the occupant dies

1. before the state is stored: the slot is FREE, nobody looks at it; its arena pages are free,
   because which pages are taken is only ever derived from slots that are not FREE;
2. after it: the slot is whole and becomes an orphan.

``sent`` is one aligned word, stored by the occupant now and then while the call is open: whoever
reads it, beside the writer or after its death, sees one of the counts, and never too many.  What
was written since the last count is missing from it.

``close`` is one store.  If the supervisor dies between ``state_before`` and ORPHANED, or anywhere
in its walk, the next cold start walks again: ORPHANED slots are left as they are.  If control dies
after the dead letter and before HARVESTED, its successor meets the same orphan again: it must
know dead letters by call id.

Memory order: slots are read by others only after their writer was reaped, which orders all its
stores; ``open_slots``, which reads beside a living writer, says itself how it dares.  A body read
by reference (``read_body``) is ordered by the ring that carried the reference.

Invariants: one writer per area at a time; a new occupant leaves every slot that is not FREE, and
its pages, alone until it is HARVESTED.  The arena's free list lives in the occupant's own memory.
Known weakness: bodies have no checksum (one pass over the body would cost more than all the rest);
lengths and places are checked when read.  A body is rounded up to a power of two pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from time import time_ns

from tpo_mp.errors import Fault

from .pages import Pages
from .registry_layout import (
    ATTEMPTS_AT,
    BEFORE_AT,
    INLINE_AT,
    INLINE_BYTES,
    LAYOUT,
    MAGIC,
    NS_PER_MS,
    PAGE_BYTES,
    RUN_WORD,
    SENT_AT,
    SENT_UNKNOWN,
    SLOT,
    SLOT_BYTES,
    SLOT_SHIFT,
    STATE_AT,
    RegistryGeometry,
    geometry_in,
    page_order,
)
from .segment import Segment


class SlotState(IntEnum):
    """Where a call stands."""

    FREE = 0
    ACCEPTED = 1
    SENT = 2
    FIRST_BYTE = 3
    ORPHANED = 4
    HARVESTED = 5
    SETTLED = 6
    OWING = 7


class SlotFlag(IntFlag):
    """What kind of call it is; of a ``JOB`` somebody else keeps the request: it has no letter."""

    ASYNC = 1
    STREAM = 2
    TRUNCATED = 4
    JOB = 8


_FREE, _ACCEPTED = int(SlotState.FREE), int(SlotState.ACCEPTED)
_REUSABLE = (SlotState.FREE, SlotState.HARVESTED)
_LEFT = (SlotState.ACCEPTED, SlotState.SENT, SlotState.FIRST_BYTE, SlotState.SETTLED,
         SlotState.OWING)  # fmt: skip
# An area's states, one byte per slot, are searched as text: control does it every second.
_LEFT_STATES = re.compile(rb"[\x01-\x03\x06\x07]")
_ORPHANED_STATE = re.compile(rb"\x04")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A call whose process died.  ``body`` is ``None`` when its place makes no sense.

    One that was SETTLED before was answered; it is here for its record.

    A body with ``SlotFlag.TRUNCATED`` is only its beginning.  ``bytes_sent`` are the bytes of a
    stream written to the client, as of the last count; -1 when not known.
    """

    seat: int
    slot: int
    epoch: int
    call_id: bytes
    state_before: SlotState
    flags: SlotFlag
    attempts: int
    started_wall_ms: int
    meta: bytes
    body: bytes | None
    bytes_sent: int = 0


class RegistryWriter:
    """The occupant's side of one area: opens and closes its calls' slots.

    ``meta`` is the caller's own encoding (at most 974 bytes, 512 by agreement).
    """

    __slots__ = (
        "_base", "_epoch", "_free", "_geometry", "_map", "_pages", "_quarantine", "_runs",
        "_words",
    )  # fmt: skip

    def __init__(self, segment: Segment, geometry: RegistryGeometry, seat: int, epoch: int) -> None:
        self._map = segment.map
        self._words = segment.words
        self._geometry = geometry
        self._base = geometry.base(seat)
        self._epoch = epoch
        self._pages = Pages(geometry.arena // PAGE_BYTES)
        self._runs: dict[int, tuple[int, int]] = {}
        self._free: list[int] = []
        self._quarantine: list[int] = []
        self._take_over()

    def _take_over(self) -> None:
        first = self._base + STATE_AT
        states = self._map[first : first + self._geometry.slots * SLOT_BYTES : SLOT_BYTES]
        for slot in reversed(range(self._geometry.slots)):
            if states[slot] in _REUSABLE:
                self._map[first + slot * SLOT_BYTES] = _FREE
                self._free.append(slot)
            else:
                self._quarantine.append(slot)
                self._reserve(slot)

    def _reserve(self, slot: int) -> None:
        """Keep the pages of a predecessor's slot."""
        _, at, length, *_ = SLOT.unpack_from(self._map, self._base + slot * SLOT_BYTES)
        page, rest = divmod(at - self._geometry.slots * SLOT_BYTES, PAGE_BYTES)
        if page >= 0 and not rest and length:
            order = page_order(length)
            if self._pages.reserve(page, order):
                self._runs[slot] = (page, order)

    @property
    def open_count(self) -> int:
        """Slots this occupant has open."""
        return self._geometry.slots - len(self._free) - len(self._quarantine)

    def open(self, call_id: bytes, meta: bytes, body: bytes, flags: int, attempts: int = 0) -> int:
        """Enter a call as ACCEPTED; answers its slot, ``-1`` when all are taken.

        A body that finds no room is kept in part and flagged TRUNCATED.
        """
        free = self._free
        if not free and not self.reclaim():
            return -1
        n, length = len(meta), len(body)
        if n + length > INLINE_BYTES:
            return self._open_large(call_id, meta, body, flags, attempts)
        slot = free.pop()
        at = slot << SLOT_SHIFT
        SLOT.pack_into(
            self._map, self._base + at, time_ns(), at + INLINE_AT + n, length, call_id, n,
            meta + body, 0, self._epoch, attempts, flags, 0, _ACCEPTED,
        )  # fmt: skip
        return slot

    def _open_large(
        self, call_id: bytes, meta: bytes, body: bytes, flags: int, attempts: int
    ) -> int:
        n, order = len(meta), page_order(len(body))
        if n > INLINE_BYTES:
            raise ValueError(f"meta has {n} bytes; at most {INLINE_BYTES} fit")
        page = self._pages.take(order)
        if page < 0 and self.reclaim():
            page = self._pages.take(order)
        if page < 0:
            kept = body[: INLINE_BYTES - n]
            return self.open(call_id, meta, kept, flags | SlotFlag.TRUNCATED, attempts)
        slot = self._free.pop()
        self._runs[slot] = (page, order)
        at = self._geometry.slots * SLOT_BYTES + page * PAGE_BYTES
        self._map[self._base + at : self._base + at + len(body)] = body
        SLOT.pack_into(
            self._map, self._base + (slot << SLOT_SHIFT), time_ns(), at, len(body), call_id, n,
            meta, 0, self._epoch, attempts, flags, 0, _ACCEPTED,
        )  # fmt: skip
        return slot

    def set_state(self, slot: int, state: int) -> None:
        """Move an open slot on; a closed one stays closed."""
        at = self._base + (slot << SLOT_SHIFT) + STATE_AT
        if self._map[at]:
            self._map[at] = state

    def set_attempts(self, slot: int, attempts: int) -> None:
        """Note how often the call was tried (at most 255)."""
        self._map[self._base + (slot << SLOT_SHIFT) + ATTEMPTS_AT] = min(attempts, 255)

    def set_sent(self, slot: int, sent: int) -> None:
        """Note how many bytes an open call's client was sent so far; negative when not known."""
        at = self._base + (slot << SLOT_SHIFT) + SENT_AT
        self._words[at >> 3] = sent if sent >= 0 else SENT_UNKNOWN

    def close(self, slot: int) -> None:
        """Forget a call; idempotent until the slot is used again."""
        at = self._base + (slot << SLOT_SHIFT) + STATE_AT
        if not self._map[at]:
            return
        self._map[at] = _FREE
        if slot in self._runs:
            self._pages.give(*self._runs.pop(slot))
        self._free.append(slot)

    def body_ref(self, slot: int) -> tuple[int, int]:
        """Where the body lies, for ``Registry.read_body``; shorter than the body if truncated."""
        _, at, length, *_ = SLOT.unpack_from(self._map, self._base + (slot << SLOT_SHIFT))
        return at, length

    def reclaim(self) -> int:
        """Take back predecessors' slots that control has harvested; answers how many."""
        first, waiting = self._base + STATE_AT, []
        before = len(self._quarantine)
        for slot in self._quarantine:
            at = first + slot * SLOT_BYTES
            if self._map[at] not in _REUSABLE:
                waiting.append(slot)
                continue
            self._map[at] = _FREE
            if slot in self._runs:
                self._pages.give(*self._runs.pop(slot))
            self._free.append(slot)
        self._quarantine = waiting
        return before - len(waiting)


class Registry:
    """All areas: gives one to its occupant, orphans the dead one's calls, reads them out."""

    def __init__(self, segment: Segment, geometry: RegistryGeometry) -> None:
        self.segment = segment
        self.geometry = geometry
        self.fd = segment.fd
        self.slots_per_seat = geometry.slots
        self.run = segment.words[RUN_WORD]
        """Names this registry among all there ever were."""

    @staticmethod
    def size(seats: int, max_open: int) -> int:
        """Bytes of a registry."""
        return RegistryGeometry.of(seats, max_open).size

    @classmethod
    def create_file(cls, path: Path, seats: int, max_open: int) -> Registry:
        """Make the host's registry as a file that outlives every process (supervisor only)."""
        geometry = RegistryGeometry.of(seats, max_open)
        run = int.from_bytes(os.urandom(8))
        segment = Segment.create_file(path, geometry.size).signed(
            MAGIC, LAYOUT, seats, geometry.slots, geometry.arena, run
        )
        return cls(segment, geometry)

    @classmethod
    def attach(cls, fd: int, seats: int, max_open: int) -> Registry:
        """Map an inherited registry; raises ``Fault`` when it is not ours."""
        geometry = RegistryGeometry.of(seats, max_open)
        segment = Segment.attach(fd, geometry.size)
        if geometry_in(segment) != geometry:
            raise Fault("call registry has another layout", reason="shm_layout")
        return cls(segment, geometry)

    @classmethod
    def attach_path(cls, path: Path) -> Registry:
        """Map the file an earlier run left, whatever its geometry; raises ``Fault`` if foreign."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            segment = Segment.attach(fd, os.fstat(fd).st_size & ~7)
            geometry = geometry_in(segment)
        except (ValueError, Fault) as error:
            os.close(fd)
            raise Fault(f"{path} is not a call registry", reason="shm_layout") from error
        if geometry is None or geometry.size != segment.size:
            segment.close()
            raise Fault(f"{path} is not a call registry of this version", reason="shm_layout")
        return cls(segment, geometry)

    def writer(self, seat: int, epoch: int) -> RegistryWriter:
        """Occupy a seat's area."""
        return RegistryWriter(self.segment, self.geometry, seat, epoch)

    def read_body(self, seat: int, offset: int, length: int) -> bytes:
        """Copy a body by its reference; the caller knows that the call is open."""
        body = self._body(seat, offset, length)
        if body is None:
            raise Fault("body reference outside its area", reason="registry_reference")
        return body

    def _body(self, seat: int, offset: int, length: int) -> bytes | None:
        if offset < INLINE_AT or offset + length > self.geometry.area:
            return None
        at = self.geometry.base(seat) + offset
        return self.segment.map[at : at + length]

    def orphan_seat(self, seat: int, epoch: int) -> int:
        """Mark the slots that a reaped occupant left (supervisor only); answers how many.

        A seat without an area, control's, has none.
        """
        if seat == self.geometry.seats - 1:
            return 0
        memory, base, marked = self.segment.map, self.geometry.base(seat), 0
        for slot in self._slots_in(seat, _LEFT_STATES):
            at = base + slot * SLOT_BYTES
            if SLOT.unpack_from(memory, at)[7] <= epoch:
                memory[at + BEFORE_AT] = memory[at + STATE_AT]
                memory[at + STATE_AT] = SlotState.ORPHANED
                marked += 1
        return marked

    def orphan_all(self) -> int:
        """Mark every open slot (cold start: whoever wrote this file is gone)."""
        return sum(self.orphan_seat(seat, 0xFFFFFFFF) for seat in range(self.geometry.seats - 1))

    def orphans(self) -> Iterator[Orphan]:
        """Copy out every orphan that is not harvested yet."""
        for seat in range(self.geometry.seats - 1):
            for slot in self._slots_in(seat, _ORPHANED_STATE):
                yield self._orphan(seat, slot)

    def harvested(self, seat: int, slot: int) -> None:
        """Give an orphan's slot back (control only, once the dead letter is written)."""
        at = self.geometry.base(seat) + slot * SLOT_BYTES + STATE_AT
        if self.segment.map[at] == SlotState.ORPHANED:
            self.segment.map[at] = SlotState.HARVESTED

    def _slots_in(self, seat: int, wanted: re.Pattern[bytes]) -> list[int]:
        first = self.geometry.base(seat) + STATE_AT
        end = first + self.geometry.slots * SLOT_BYTES
        states = self.segment.map[first:end:SLOT_BYTES]
        return [found.start() for found in wanted.finditer(states)]

    def _orphan(self, seat: int, slot: int) -> Orphan:
        at = self.geometry.base(seat) + slot * SLOT_BYTES
        started_ns, offset, length, call_id, n, inline, sent, epoch, attempts, flags, before, _ = (
            SLOT.unpack_from(self.segment.map, at)
        )
        return Orphan(
            seat=seat,
            slot=slot,
            epoch=epoch,
            call_id=call_id,
            state_before=SlotState(before) if before in _LEFT else SlotState.ACCEPTED,
            flags=SlotFlag(flags & 15),
            attempts=attempts,
            started_wall_ms=started_ns // NS_PER_MS,
            meta=inline[:n] if n <= INLINE_BYTES else b"",
            body=self._body(seat, offset, length),
            bytes_sent=-1 if sent == SENT_UNKNOWN else sent,
        )

    def close(self) -> None:
        """Unmap; the file stays."""
        self.segment.close()
