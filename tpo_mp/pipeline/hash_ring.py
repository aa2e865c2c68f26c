"""A ring of backends on which a key always finds the same one, while others come and go.

Each backend stands at ``POINTS`` places, heavier ones at more, by MD5 of its name and the number
of the place; a key belongs to the next place on the ring.  A backend that goes away moves only its
own keys.

Invariants: the same names and weights make the same ring in every process and after every restart.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b, md5
from typing import Final, Protocol

from tpo_mp.types import Call

from .loads import T

POINTS: Final = 150
_MOST: Final = 15_000
"""Places of a ring in all, whatever the weights."""
_KEYS: Final = 4096
_READ: Final = 1 << 16
"""Bytes of a request that tell it from others; to read 32 MiB would hold the loop."""


class Weighed(Protocol):
    """What a ring needs of a target."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> int: ...


class HashRing:
    """The ring of some targets."""

    def __init__(self, targets: Sequence[Weighed]) -> None:
        lightest = min((target.weight for target in targets), default=1)
        scale = min(POINTS / lightest, _MOST / (sum(target.weight for target in targets) or 1))
        places = sorted(
            (_place(f"{target.name}#{n}".encode()), target.name)
            for target in targets
            for n in range(max(1, round(target.weight * scale)))
        )
        self._places = [place for place, _ in places]
        self._names = [name for _, name in places]
        self._count = len(targets)

    def order(self, key: bytes) -> list[str]:
        """All names in the order in which the key would go to them."""
        names = self._names
        start = bisect(self._places, _place(key))
        found: dict[str, None] = {}
        for step in range(len(names)):
            found[names[(start + step) % len(names)]] = None
            if len(found) == self._count:
                break
        return list(found)


class HashRings:
    """The ring of a route's targets, and where keys were found on it lately.

    It holds all of them: those that are left of them keep their order, so no other ring is needed.
    """

    def __init__(self) -> None:
        self._known: dict[str, Weighed] = {}
        self._ring = HashRing(())
        self._orders: dict[bytes, list[str]] = {}

    def meet(self, targets: Sequence[Weighed]) -> None:
        """Learn of targets; workers that learn of the same at once have the same ring."""
        self._known.update((target.name, target) for target in targets)
        self._ring = HashRing(tuple(self._known.values()))
        self._orders.clear()

    def order(self, key: bytes, targets: Sequence[T]) -> list[T]:
        """The targets in the order in which the key would go to them."""
        left = {target.name: target for target in targets}
        if not left.keys() <= self._known.keys():
            self.meet(targets)
        order = self._orders.get(key)
        if order is None:
            if len(self._orders) >= _KEYS:
                self._orders.clear()
            order = self._orders[key] = self._ring.order(key)
        return [left[name] for name in order if name in left]


def session_key(call: Call) -> bytes:
    """What calls of one session have in common; sessions of two tenants are two.

    A call without a session is one of its own: requests that are as long and begin alike have the
    same key.
    """
    if call.affinity:
        text = f"{call.tenant}\0{call.affinity}".encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16).digest()
    start = blake2b(call.body[:_READ], digest_size=16)
    start.update(len(call.body).to_bytes(8))
    return start.digest()


def _place(key: bytes) -> int:
    return int.from_bytes(md5(key, usedforsecurity=False).digest()[:8], "big")
