"""The open calls of living occupants, read beside their writers.

Control copies them to disk; what it copies must be one whole call, or nothing.  A slot is taken as

    1  the slot's bytes      2  its state: open      3  the body, if it lies in the arena
    4  its state: still open      5  the slot's bytes again: the same up to ``sent``

The writer stores ``started_ns`` first and the state last, and gives a slot's pages away only after
its state.  So pages that were given away before 3 ended show in 4, unless the slot was opened again
by then; a slot that was opened, or was being opened, anywhere between 1 and 4 differs in 5.

Places: a call's place is ``seat * slots_per_seat + slot``.

Memory order: stores are seen in order, loads are made in order (x86-64).  Elsewhere a fence stands
between the steps; the writer has none, so a slot opened within the last microsecond could be seen
before all its bytes, in both of two looks.  Nothing worse than a wrong copy of that call follows.

Known weakness: a call that opens and closes between two scans is never seen; it needs no copy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .fence import FENCED, fence
from .registry import Registry
from .registry_layout import INLINE_BYTES, SENT_AT, SLOT, SLOT_BYTES, STATE_AT

# Open, or not yet a dead letter: orphaned, or over.
_STATES = b"\x01\x02\x03\x04\x07"
_KEPT = re.compile(b"[" + _STATES + b"]")
_WORD_BYTES = 8
_SLOT_WORDS = SLOT_BYTES // _WORD_BYTES


@dataclass(frozen=True, slots=True)
class OpenCall:
    """One open call, copied whole."""

    started_ns: int
    call_id: bytes
    flags: int
    meta: bytes
    body: bytes


class OpenSlots:
    """Finds and copies the calls of a registry that are not finished."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._segment = registry.segment
        self._geometry = registry.geometry

    def place(self, seat: int, slot: int) -> int:
        """The place of a slot."""
        return seat * self._geometry.slots + slot

    def scan(self) -> dict[int, int]:
        """Place and ``started_ns`` of every call that is not finished."""
        geometry, memory, words = self._geometry, self._segment.map, self._segment.words
        found: dict[int, int] = {}
        for seat in range(geometry.seats - 1):
            base = geometry.base(seat)
            end = base + geometry.slots * SLOT_BYTES
            states = memory[base + STATE_AT : end : SLOT_BYTES]
            slots = [kept.start() for kept in _KEPT.finditer(states)]
            if slots:
                # After the states: a slot reopened in between shows its new call's instant.
                started = words[base // _WORD_BYTES : end // _WORD_BYTES : _SLOT_WORDS]
                first = seat * geometry.slots
                found.update((first + slot, started[slot]) for slot in slots)
        return found

    def read(self, place: int) -> OpenCall | None:
        """Copy the call at a place; ``None`` when it is over, or changes while it is read."""
        geometry, memory = self._geometry, self._segment.map
        seat, slot = divmod(place, geometry.slots)
        at = geometry.base(seat) + slot * SLOT_BYTES
        seen = memory[at : at + SLOT_BYTES]
        if not self._open(at):
            return None
        started_ns, offset, length, call_id, n, inline, _, _, _, flags, _, _ = SLOT.unpack(seen)
        inside = slot * SLOT_BYTES <= offset < (slot + 1) * SLOT_BYTES
        if inside:
            start = offset - slot * SLOT_BYTES
            body = seen[start : start + length]
        elif offset + length <= geometry.area:
            start = geometry.base(seat) + offset
            body = memory[start : start + length]
        else:
            return None
        if n > INLINE_BYTES or not self._open(at) or memory[at : at + SENT_AT] != seen[:SENT_AT]:
            return None
        return OpenCall(started_ns, call_id, flags, inline[:n], body)

    def _open(self, at: int) -> bool:
        if FENCED:
            fence()
        is_open = self._segment.map[at + STATE_AT] in _STATES
        if FENCED:
            fence()
        return is_open
