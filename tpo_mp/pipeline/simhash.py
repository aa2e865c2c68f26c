"""A fingerprint of 64 bits that near texts nearly share (Charikar 2002).

Shingles are the words and the pairs of neighbouring words, a pair counting twice; each votes with
the bits of its FNV-1a hash, and the majority of every bit is the fingerprint.  Words are lower case
and without the punctuation round them: with it, one lost question mark moves 7 of 64 bits.

Two fingerprints that differ in at most 3 bits agree in one of their 4 bands of 16.

Invariants: equal words give an equal fingerprint; a text without a word is 0.
Cost: about 1 us per word, which is why callers bound what they ask about.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

BITS: Final = 64
BANDS: Final = 4
PAIR_WEIGHT: Final = 2
MAX_WORDS: Final = 20_000
"""Votes are counted in lanes of 16 bits: more words than this could spill into the next."""

_BASIS: Final = 0xCBF29CE484222325
_PRIME: Final = 0x100000001B3
_MASK: Final = (1 << BITS) - 1
_LANE: Final = 16
# What a byte of a hash adds to the votes of its eight bits, a lane each.
_VOTES: Final = [sum((byte >> bit & 1) << bit * _LANE for bit in range(8)) for byte in range(256)]
_TWICE: Final = [PAIR_WEIGHT * votes for votes in _VOTES]
_LANE_MASK: Final = (1 << _LANE) - 1
_BAND_BITS: Final = BITS // BANDS
_BAND_MASK: Final = (1 << _BAND_BITS) - 1


def words_of(text: str) -> list[str]:
    """Return the words: lower case, no punctuation round them, none that is punctuation alone."""
    trimmed = (word.strip(string.punctuation) for word in text.lower().split())
    return [word for word in trimmed if word]


def fnv1a(data: bytes, state: int = _BASIS) -> int:
    """Return the FNV-1a hash of 64 bits; ``state`` goes on from the hash of what came before."""
    for byte in data:
        state = (state ^ byte) * _PRIME & _MASK
    return state


def simhash(words: Sequence[str]) -> int:
    """Return the fingerprint of these words, 64 bits; ``ValueError`` over ``MAX_WORDS``."""
    if len(words) > MAX_WORDS:
        raise ValueError(f"{len(words)} words are more than {MAX_WORDS}")
    lanes = [0] * 8
    parts = [word.encode() for word in words]
    starts = [fnv1a(part) for part in parts]
    for state in starts:
        for place, byte in enumerate(state.to_bytes(8, "little")):
            lanes[place] += _VOTES[byte]
    for (_, part), state in zip(pairwise(parts), starts, strict=False):
        pair = fnv1a(part, fnv1a(b" ", state))
        for place, byte in enumerate(pair.to_bytes(8, "little")):
            lanes[place] += _TWICE[byte]
    voters = len(parts) + PAIR_WEIGHT * max(0, len(parts) - 1)
    found = 0
    for place, votes in enumerate(lanes):
        for bit in range(8):
            if 2 * (votes >> bit * _LANE & _LANE_MASK) > voters:
                found |= 1 << place * 8 + bit
    return found


def distance(one: int, other: int) -> int:
    """In how many bits two fingerprints differ."""
    return (one ^ other).bit_count()


def bands(fingerprint: int) -> list[int]:
    """The four bands, of 16 bits each."""
    return [fingerprint >> band * _BAND_BITS & _BAND_MASK for band in range(BANDS)]
