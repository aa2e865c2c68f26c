"""A ring of backends on which a key always finds the same one, while others come and go.

Each backend stands at ``POINTS`` places, heavier ones at more, by MD5 of its name and the number
of the place; a key belongs to the next place on the ring.  A backend that goes away moves only its
own keys.

Invariants: the same names and weights make the same ring in every process and after every restart.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from hashlib import md5
from typing import Final

from .loads import Pickable

POINTS: Final = 150
_MOST: Final = 15_000
"""Places of a ring in all, whatever the weights."""


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


def _place(key: bytes) -> int:
    return int.from_bytes(md5(key, usedforsecurity=False).digest()[:8], "big")
