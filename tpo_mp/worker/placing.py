"""Which seat serves an affinity key.

bucket = BLAKE2b-64(key=install key, tenant 0x00 affinity) mod 1024; the slot map names its seat.
Invariants: the same key meets the same bucket on this host for as long as its install key lives;
a guessed session id of another tenant lands elsewhere.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from tpo_mp.shm.plane import BUCKETS, Plane


class Placing:
    """The slot map as this shard last read it."""

    __slots__ = ("_key", "_plane", "_seats", "version")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._key = plane.install_key
        self.version = -1
        self._seats: array[int] = array("H")
        self.refresh()

    def refresh(self) -> None:
        """Read the map again if it changed."""
        if self._plane.map_version != self.version:
            self.version, self._seats = self._plane.read_map()

    def seat_of(self, tenant: str, affinity: str) -> int:
        """The seat that serves this key now."""
        self.refresh()
        digest = blake2b(
            f"{tenant}\0{affinity}".encode("utf-8", "surrogatepass"), digest_size=8, key=self._key
        )
        return self._seats[int.from_bytes(digest.digest(), "big") % BUCKETS]
