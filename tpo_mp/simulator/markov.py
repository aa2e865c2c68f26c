"""Text by a Markov chain: each word follows one that it follows somewhere in a text.

Invariants: the same text and draws make the same words; a chain without a way on begins again.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Final

PROSE: Final = (
    "The river leaves the hills in spring and finds the valley slowly. "
    "The valley was made by the river, and the river is made by the rain. "
    "When the rain is late, the mill stands still and the miller mends his roof. "
    "A mill that stands still earns nothing, but a roof that leaks costs more. "
    "In the evening the miller counts the sacks and the river counts nothing. "
    "What the river carries to the sea comes back to the hills as rain. "
    "Some say the sea is patient, and some say the hills are. "
    "The road along the river is older than the mill and younger than the hills. "
    "Whoever walks the road in spring hears the river before he sees the valley. "
    "The miller says that rain is the best of all customers, because it never counts."
)
"""What is learned from where the operator gives no text."""


@lru_cache(maxsize=8)
def chain_of(text: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The words that begin a sentence of ``text``, and those that follow each word."""
    words = text.split() or ["…"]
    after: dict[str, list[str]] = {}
    begins = [words[0]]
    for word, follower in pairwise(words):
        if word[-1] in ".!?":
            begins.append(follower)
        else:
            after.setdefault(word, []).append(follower)
    return tuple(begins), {word: tuple(found) for word, found in after.items()}


def sentence(text: str, random: Random, most: int = 40) -> str:
    """A sentence in the manner of ``text``, of at most so many words."""
    begins, after = chain_of(text)
    words = [random.choice(begins)]
    while len(words) < most and words[-1] in after:
        words.append(random.choice(after[words[-1]]))
    said = " ".join(words)
    return said if said[-1] in ".!?" else said + "."
