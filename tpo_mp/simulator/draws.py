"""A small stream of uniform numbers for each call in flight.

``random.Random`` keeps 2.5 KB and is slow to seed; a simulated call keeps its stream as long as it
runs, and there are thousands of them.  This is splitmix64 (Steele, Lea and Flood, *Fast splittable
pseudorandom number generators*, 2014): 64 bits of state, one step per number.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E3779B97F4A7C15
_SCALE: Final = 2.0**-53
_HALF: Final = 2.0**-54


class Draws:
    """The numbers of one key and purpose; the same key, the same numbers, on any machine."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes, purpose: bytes = b"") -> None:
        self._state = int.from_bytes(blake2b(purpose, digest_size=8, key=key).digest(), "little")

    def __call__(self) -> float:
        """The next number, over nought and under one."""
        self._state = z = (self._state + _STEP) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * _SCALE + _HALF

    def between(self, low: int, high: int) -> int:
        """The next whole number from ``low`` to ``high``, each alike."""
        return low + int(self() * (high - low + 1))
