"""Which seat serves each of the 1 024 buckets, and who accepts for a silent slot.

Bucket ``b`` is at home in slot ``b % workers``.  While that slot is down for more than
``MOVE_AFTER_S`` its buckets, and no others, go to the live slot with the highest rendezvous weight;
they come home when the slot serves again.

Invariants: pure functions of their arguments; one lost slot of N moves at most 1/N of the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

BUCKETS = 1024
NO_SEAT = 0xFFFF
MOVE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class SlotView:
    """What the map needs to know of a slot: its seat (kept while briefly down), and its health."""

    seat: int
    serving: bool
    moved: bool


def buckets(slots: Sequence[SlotView]) -> list[int]:
    """Return the seat of every bucket."""
    live = tuple(index for index, slot in enumerate(slots) if slot.serving)
    seats = []
    for bucket in range(BUCKETS):
        home = bucket % len(slots)
        if slots[home].moved and live:
            home = _guest(bucket, live)
        seats.append(slots[home].seat)
    return seats


def acceptors(slots: Sequence[SlotView], silent: Sequence[bool]) -> list[int]:
    """Return the seat that accepts on each slot's listener: its own, or the next one that beats."""
    count = len(slots)
    chosen = []
    for index in range(count):
        around = (slots[(index + step) % count] for step in range(count))
        beating = (
            slot.seat
            for step, slot in enumerate(around)
            if slot.serving and not silent[(index + step) % count]
        )
        chosen.append(next(beating, slots[index].seat if slots[index].serving else NO_SEAT))
    return chosen


@cache
def _weight(bucket: int, slot: int) -> int:
    digest = blake2b(b"%d/%d" % (bucket, slot), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _guest(bucket: int, live: tuple[int, ...]) -> int:
    return max(live, key=lambda slot: _weight(bucket, slot))
