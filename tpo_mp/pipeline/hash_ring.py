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
from typing import Final

from tpo_mp.types import Call

from .loads import REMEMBERED, Pickable

POINTS: Final = 150
_MOST: Final = 15_000
"""Places of a ring in all, whatever the weights."""
_KEYS: Final = 4096


class HashRing:
    """The ring of some targets."""

    def __init__(self, targets: Sequence[Pickable]) -> None:
        lightest = min(target.weight for target in targets)
        scale = min(POINTS / lightest, _MOST / sum(target.weight for target in targets))
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
    """Rings by their targets, and where keys were found on them lately."""

    def __init__(self) -> None:
        self._rings: dict[tuple[tuple[str, int], ...], HashRing] = {}
        self._orders: dict[tuple[bytes, HashRing], list[str]] = {}

    def order(self, key: bytes, targets: Sequence[Pickable]) -> list[str]:
        """All names in the order in which the key would go to them."""
        among = tuple((target.name, target.weight) for target in targets)
        ring = self._rings.get(among)
        if ring is None:
            if len(self._rings) >= REMEMBERED:
                self._rings.clear()
                self._orders.clear()
            ring = self._rings[among] = HashRing(targets)
        order = self._orders.get((key, ring))
        if order is None:
            if len(self._orders) >= _KEYS:
                self._orders.clear()
            order = self._orders[key, ring] = ring.order(key)
        return order


def session_key(call: Call) -> bytes:
    """What calls of one session have in common; sessions of two tenants are two.

    A call without a session is one of its own: the same request has the same key.
    """
    if call.affinity:
        text = f"{call.tenant}\0{call.affinity}".encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16).digest()
    return blake2b(call.body, digest_size=16).digest()


def _place(key: bytes) -> int:
    return int.from_bytes(md5(key, usedforsecurity=False).digest()[:8], "big")
