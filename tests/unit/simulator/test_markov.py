"""The chain: only steps of the text, the same draws the same words, always an end."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from tpo_mp.simulator import markov


def test_every_step_is_one_of_the_text() -> None:
    """And sentences begin as the text's do."""
    steps = set(pairwise(markov.PROSE.split()))
    random = Random(1)
    for _ in range(50):
        words = markov.sentence(markov.PROSE, random).split()
        assert words[0] in markov.chain_of(markov.PROSE)[0]
        assert words[-1][-1] in ".!?"
        assert {step for step in pairwise(words) if step not in steps} <= {
            tuple(words[-2:])  # a full stop may be ours
        }


def test_equal_draws_say_the_same_and_circles_end() -> None:
    """A text without a full stop does, too."""
    made = [markov.sentence(markov.PROSE, Random(7)) for _ in range(2)]
    assert made[0] == made[1]
    assert len(markov.sentence("round and round and", Random(1), most=12).split()) <= 12
    assert markov.sentence("", Random(1)) == "…."
