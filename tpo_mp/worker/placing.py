"""Which seat serves an affinity key.

bucket = BLAKE2b-64(key=install key, tenant 0x00 affinity) mod 1024; the slot map names its seat.
mark = BLAKE2b-32(key=install key, tenant) in the ids of a tenant's calls, see ``shm.callid``.

Invariants: the same key meets the same bucket on this host for as long as its install key lives;
a guessed session id of another tenant lands elsewhere.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from tpo_mp.shm.plane import BUCKETS, Plane

_MOST_MARKS = 4096


class Placing:
    """The slot map as this shard last read it."""

    __slots__ = ("_key", "_marks", "_plane", "_seats", "version")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._key = plane.install_key
        self._marks: dict[str, str] = {"": ""}
        self.version = -1
        self._seats: array[int] = array("H")
        self.refresh()

    def refresh(self) -> None:
        """Read the map again if it changed."""
        if self._plane.map_version != self.version:
            self.version, self._seats = self._plane.read_map()

    def seats(self) -> array[int]:
        """The map itself: the seat of each bucket."""
        self.refresh()
        return self._seats

    def mark(self, tenant: str) -> str:
        """What the ids of a tenant's calls end in, 8 hex digits; empty for no tenant."""
        found = self._marks.get(tenant)
        if found is None:
            digest = blake2b(tenant.encode(), digest_size=4, key=self._key, person=b"mark")
            if len(self._marks) >= _MOST_MARKS:
                self._marks = {"": ""}
            found = self._marks[tenant] = digest.hexdigest()
        return found

    def seat_of(self, tenant: str, affinity: str) -> int:
        """The seat that serves this key now."""
        self.refresh()
        digest = blake2b(
            f"{tenant}\0{affinity}".encode("utf-8", "surrogatepass"), digest_size=8, key=self._key
        )
        return self._seats[int.from_bytes(digest.digest(), "big") % BUCKETS]
