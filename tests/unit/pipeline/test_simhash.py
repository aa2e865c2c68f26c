"""Fingerprints of near texts, and what finds them."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from tpo_mp.pipeline.simhash import (
    MAX_WORDS,
    PAIR_WEIGHT,
    bands,
    distance,
    fnv1a,
    simhash,
    words_of,
)  # fmt: skip


def slow_simhash(words: list[str], pair_weight: int = PAIR_WEIGHT) -> int:
    """The same by the book: a vote of +1 or -1 per bit and shingle."""
    voters = [(word, 1) for word in words]
    voters += [(f"{a} {b}", pair_weight) for a, b in pairwise(words)]
    votes = [0] * 64
    for text, weight in voters:
        state = fnv1a(text.encode())
        for bit in range(64):
            votes[bit] += weight if state >> bit & 1 else -weight
    return sum(1 << bit for bit in range(64) if votes[bit] > 0)


def test_fnv1a_is_the_published_one() -> None:
    """FNV-1a, not FNV-1, which folds in the other order; and it can go on."""
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"hello") == 0xA430D84680AABD0B
    assert fnv1a(b"foobar") == 0x85944171F73967E8
    assert fnv1a(b"llo", fnv1a(b"he")) == fnv1a(b"hello")


@pytest.mark.parametrize(
    ("one", "other", "raw", "trimmed"),
    [
        ("What is the capital of France?", "What is the capital of France", (7, 10), (0, 0)),
        ("What is the capital of France?", "What is the capital of Germany?", (9, 12), (14, 13)),
        ("How do I reset my password?", "How can I reset my password?", (13, 19), (14, 19)),
    ],
)
def test_distances_of_known_pairs(
    one: str, other: str, raw: tuple[int, int], trimmed: tuple[int, int]
) -> None:
    """Measured before there was this code: with raw and trimmed words, pairs counted 1 and 2."""

    def away(words: tuple[list[str], list[str]], weight: int) -> int:
        return distance(slow_simhash(words[0], weight), slow_simhash(words[1], weight))

    assert tuple(away((one.split(), other.split()), weight) for weight in (1, 2)) == raw
    tidy = words_of(one), words_of(other)
    assert tuple(away(tidy, weight) for weight in (1, 2)) == trimmed
    assert distance(simhash(tidy[0]), simhash(tidy[1])) == trimmed[1]


def test_votes_in_lanes_are_votes(rng: Random) -> None:
    """Any number of words, with repeats, as the slow form has it."""
    for size in (0, 1, 2, 3, 17, 400):
        words = [f"{rng.getrandbits(rng.choice((3, 40))):x}" for _ in range(size)]
        assert simhash(words) == slow_simhash(words)
    assert simhash([]) == 0
    assert simhash(["ß", "日本"]) == slow_simhash(["ß", "日本"])


def test_most_words_do_not_spill() -> None:
    """One word over and over: every vote of a lane is the same."""
    assert simhash(["ab"] * MAX_WORDS) == slow_simhash(["ab"] * MAX_WORDS)
    with pytest.raises(ValueError, match="20001 words"):
        simhash(["ab"] * (MAX_WORDS + 1))


def test_words_are_lower_case_and_bare() -> None:
    """Punctuation goes round words, not in them."""
    assert words_of("  Don't -- stop, \n(NOW)! ") == ["don't", "stop", "now"]


def test_near_fingerprints_share_a_band(rng: Random) -> None:
    """Three bits cannot be in four bands; four can."""
    base = rng.getrandbits(64)
    for _ in range(500):
        other = base ^ sum(1 << bit for bit in rng.sample(range(64), rng.randrange(4)))
        assert any(a == b for a, b in zip(bands(base), bands(other), strict=True))
    assert bands(0x0004_0003_0002_0001) == [1, 2, 3, 4]
    spread = base ^ sum(1 << bit for bit in (0, 16, 32, 48))
    assert not any(a == b for a, b in zip(bands(base), bands(spread), strict=True))
