"""Places and sizes of the call registry; ``registry`` is their specification.

Invariants: changing anything here is a new ``LAYOUT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from .segment import Segment

MAGIC = int.from_bytes(b"TPOREGS1", "little")
LAYOUT = 2
RUN_WORD = 5
HEADER_BYTES = 4096
SLOT_BYTES = 1024
INLINE_AT = 34
INLINE_BYTES = 974
PAGE_BYTES = 2048
MIN_SLOTS = 1024
MIN_ARENA = 4 << 20
MAX_ARENA = 16 << 20
HOST_ARENAS = 256 << 20
NS_PER_MS = 1_000_000

SLOT = Struct(f"@QII16sH{INLINE_BYTES}sQIBBBB")
SLOT_SHIFT = 10
SENT_AT = 1008
EPOCH_AT = 1016
ATTEMPTS_AT = 1020
BEFORE_AT = 1022
STATE_AT = 1023
SENT_UNKNOWN = (1 << 64) - 1
assert SLOT.size == SLOT_BYTES == 1 << SLOT_SHIFT
assert INLINE_AT + INLINE_BYTES == SENT_AT


@dataclass(frozen=True, slots=True)
class RegistryGeometry:
    """How a registry is divided."""

    seats: int
    slots: int
    arena: int

    @classmethod
    def of(cls, seats: int, max_open: int) -> RegistryGeometry:
        """Room for ``max_open`` calls and a quarter more, however the workers share them."""
        workers = max(1, seats - 3)
        slots = max(MIN_SLOTS, -(-max_open * 5 // (workers * 4)))
        arena = MAX_ARENA
        while arena > MIN_ARENA and arena * (seats - 1) > HOST_ARENAS:
            arena //= 2
        return cls(seats, slots, arena)

    @property
    def area(self) -> int:
        """Bytes of one seat's area."""
        return self.slots * SLOT_BYTES + self.arena

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return HEADER_BYTES + (self.seats - 1) * self.area

    def base(self, seat: int) -> int:
        """Where a seat's area begins."""
        if not 0 <= seat < self.seats - 1:
            raise IndexError(f"seat {seat} has no registry area")
        return HEADER_BYTES + seat * self.area


def copy_name(run: int | None = None) -> str:
    """File name of the copy on disk of the registry named ``run``; by default a pattern for all."""
    return "registry.synced-" + ("?" * 16 if run is None else f"{run:016x}")


def page_order(length: int) -> int:
    """Pages of a body, as a power of two."""
    return (-(-length // PAGE_BYTES) - 1).bit_length()


def geometry_in(segment: Segment) -> RegistryGeometry | None:
    """Read how a registry is divided; ``None`` when it is none of ours."""
    if segment.size < HEADER_BYTES:
        return None
    magic, layout, seats, slots, arena = segment.words[:5].tolist()
    return RegistryGeometry(seats, slots, arena) if (magic, layout) == (MAGIC, LAYOUT) else None
