"""Texts by pattern: what comes out matches what went in, or nothing does."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.simulator.patterns import MAX_TEXT, string_like

KNOWN = [
    r"^[A-Z]{2}\d{4}$", r"^(red|green|blue)$", r"^\d{3}-\d{4}$", r"[a-f0-9]+", r"^v\d+(\.\d+){2}$",
    r"^[^a-z]{3}$", r"^\w+@\w+\.(com|org)$", r"a?b*c{2,3}", r"^(?:ab|cd){2}$", r"^.{5}$", r"",
    r"^\+?[1-9]\d{1,14}$", r"^[\w.-]+$", r"^a{2,}$",
]  # fmt: skip
UNKNOWN = [r"(?=x)y", r"\bword\b", r"(a", r"[a", r"a**", r"\1", r"x{99999}", r"a" * 600, r"a^b"]


@pytest.mark.parametrize("pattern", KNOWN)
def test_text_matches_its_pattern(pattern: str) -> None:
    """Many times over."""
    for seed in range(50):
        text = string_like(pattern, Random(seed))
        assert text is not None
        assert re.search(pattern, text), (pattern, text)


@pytest.mark.parametrize("pattern", UNKNOWN)
def test_what_is_not_understood_answers_nothing(pattern: str) -> None:
    """Never something that might not match."""
    assert string_like(pattern, Random(0)) is None


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@given(st.text(alphabet="ab01^$.|()[]{},*+?\\-dw", max_size=24), st.integers(0, 5))
def test_any_pattern_is_matched_or_declined(pattern: str, seed: int) -> None:
    """No crash, no endless text, and no text beside the pattern."""
    text = string_like(pattern, Random(seed))
    if text is None:
        return
    assert len(text) <= MAX_TEXT
    try:
        compiled = re.compile(pattern)
    except re.error:
        return
    assert compiled.search(text), (pattern, text)
