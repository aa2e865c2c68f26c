"""Token counts: one rule for prompts, answers and events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_codec import request_of
from tpo_mp.simulator.tokens import EXACT, count, pieces, prompt_tokens


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    """Whatever the script; and there are as many as are counted."""
    assert "".join(pieces(text)) == text
    assert len(pieces(text)) == count(text)


@given(st.text(max_size=200), st.integers(0, 50))
def test_beginning_is_cut_as_the_whole_is(text: str, limit: int) -> None:
    """So a text cut after some tokens has exactly so many."""
    assert count("".join(pieces(text)[:limit])) == min(limit, count(text))


def test_english_has_close_to_four_characters_a_token() -> None:
    """The rule of thumb that users of real providers know."""
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps until the morning."
    assert 3.0 < len(text) / count(text) < 5.0


def test_very_long_text_is_estimated_beyond_a_point() -> None:
    """Counting never takes long, and never counts less than a part."""
    long = "word " * EXACT
    assert count(long) == pytest.approx(len(long) / 4, rel=0.4)
    assert count(long) > count(long[: EXACT * 2])


def test_prompt_counts_messages_system_and_tools() -> None:
    """Each adds to the count."""
    plain = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    system = {"role": "system", "content": "be kind"}
    counts = [
        prompt_tokens(request_of(plain)),
        prompt_tokens(request_of(plain | {"messages": [system, *plain["messages"]]})),  # type: ignore[misc]
        prompt_tokens(request_of(plain | {"tools": [tool]})),
    ]
    assert counts[0] < counts[1]
    assert counts[0] < counts[2]
    assert counts[0] == 3 + 4 + count("hello there")
