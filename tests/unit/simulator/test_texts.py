"""Text strategies: deterministic, of about the length asked for."""

from __future__ import annotations

from random import Random

import pytest

from tpo_mp.simulator.texts import Strategy, length_of, say
from tpo_mp.simulator.tokens import count

MADE_UP: list[Strategy] = ["template", "lorem", "random"]


@pytest.mark.parametrize("strategy", MADE_UP)
def test_same_numbers_same_text(strategy: Strategy) -> None:
    """And others another."""
    first, again, other = (say(strategy, "old bridges", 40, Random(n), "") for n in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("strategy", MADE_UP)
@pytest.mark.parametrize("length", [1, 10, 100, 500])
def test_length_is_met_to_a_sentence(strategy: Strategy, length: int) -> None:
    """Never shorter but by the blanks, never longer than by one sentence."""
    for seed in range(20):
        text = say(strategy, "old bridges over wide rivers", length, Random(seed), "")
        assert length - 2 <= count(text) + text.count(". ") + 1 <= length + 64
        assert text.endswith(".")


def test_template_talks_about_the_prompt() -> None:
    """Its own words, never the little ones; without any it still says something."""
    text = say("template", "Please tell me about volcanoes", 60, Random(1), "").lower()
    assert "volcanoes" in text
    assert "please" not in text
    assert say("template", "?", 20, Random(1), "")


def test_echo_and_fixed_say_what_they_are_given() -> None:
    """To the character."""
    assert say("echo", " as it is\n", 5, Random(1), "x") == " as it is\n"
    assert say("fixed", "prompt", 5, Random(1), "this") == "this"


def test_lengths_stay_within_their_bounds() -> None:
    """Both ends are reached; short answers are as likely as long ones by factor."""
    drawn = sorted(length_of(Random(n), 10, 500) for n in range(2000))
    assert drawn[0] in range(10, 12)
    assert drawn[-1] in range(480, 501)
    assert 55 < drawn[1000] < 90
