"""A ring small enough that a test meets its edge, and a record that proves itself."""

from __future__ import annotations

import hashlib
import random

from tpo_mp.shm.ring import RingReader, RingWriter
from tpo_mp.shm.ring_layout import DATA
from tpo_mp.shm.segment import Segment

CAPACITY = 1024


class SmallRing:
    """One ring of its own in its own memory."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.segment = Segment.create("small-ring", DATA + capacity)

    def writer(self, epoch: int = 1) -> RingWriter:
        """Attach a producer."""
        return RingWriter(self.segment, 0, self.capacity, epoch)

    def reader(self) -> RingReader:
        """Attach a consumer."""
        return RingReader(self.segment, 0, self.capacity)


def numbered(number: int, size: int) -> bytes:
    """Make a record whose bytes follow from its number and size, checkable without any ring."""
    head = number.to_bytes(8, "little") + size.to_bytes(4, "little")
    body = hashlib.shake_128(head).digest(size)
    return head + body


def number_of(record: bytes) -> int:
    """Read a record's number; fails unless every byte is as ``numbered`` made it."""
    number, size = int.from_bytes(record[:8], "little"), int.from_bytes(record[8:12], "little")
    assert record == numbered(number, size), f"record {number} is not genuine"
    return number


def random_sizes(rng: random.Random, largest: int) -> int:
    """Mostly small, sometimes as large as may be, and often at an alignment's edge."""
    kind = rng.random()
    if kind < 0.6:
        return rng.randrange(1, 120)
    if kind < 0.8:
        return 16 * rng.randrange(1, largest // 16) + rng.choice((-1, 0, 1))
    return rng.randrange(1, largest)
