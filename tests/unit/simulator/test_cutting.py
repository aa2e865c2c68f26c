"""Where answers end, and that a fixed one is cut as any other, the second time as the first."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_codec import asked, finished
from tpo_mp.simulator.answers import Composer, Speech
from tpo_mp.simulator.cutting import MOST_CUTS, FixedAnswers, within
from tpo_mp.types import Dialect

TEXT = "one two three four five"


@pytest.mark.parametrize(
    ("limit", "stop", "said"),
    [
        (None, (), (TEXT, "end", None)),
        (5, (), (TEXT, "end", None)),
        (2, (), ("one two", "length", None)),
        (None, ("four", "two"), ("one ", "stop_sequence", "two")),
        (1, ("two",), ("one", "length", None)),
    ],
)
def test_first_end_counts(limit: int | None, stop: tuple[str, ...], said: Any) -> None:
    """The text, why it ends, and at which sequence; remembered or not."""
    assert within(TEXT, limit, stop) == said
    fixed = FixedAnswers(TEXT)
    request = asked("hi", max_tokens=limit, stop=list(stop) or None)
    first = fixed.choice(request)
    choice = first[0]
    assert (choice.blocks[0].text, choice.stop, choice.stop_sequence) == said  # type: ignore[union-attr]
    assert fixed.choice(request) is first


def test_no_more_ways_are_remembered_than_allowed() -> None:
    """Beyond that, and with long stop sequences, each time is the first."""
    fixed = FixedAnswers(TEXT)
    long = asked("hi", stop=["x" * 1000])
    assert fixed.choice(long) is not fixed.choice(long)
    for limit in range(1, MOST_CUTS + 1):
        fixed.choice(asked("hi", max_tokens=limit))
    late = asked("hi", max_tokens=MOST_CUTS + 1)
    assert fixed.choice(late) is not fixed.choice(late)
    assert fixed.choice(late) == fixed.choice(late)


def test_requests_for_more_than_words_do_not_share_an_answer() -> None:
    """Formats, probabilities and engines' own fields change what a fixed text becomes."""
    composer = Composer(Speech(strategy="fixed", text=TEXT))

    def choice(**more: Any) -> Any:
        request = asked("hi", max_tokens=40, **more)
        return finished(composer.compose(request, Dialect.OPENAI_CHAT, b"k")).choices[0]

    plain = choice()
    assert choice() == plain
    assert choice(logprobs=True).logprobs is not None
    assert choice(response_format={"type": "json_object"}).blocks[0].text.startswith("{")
    assert len(choice(min_tokens=30).blocks[0].text) > len(TEXT)
    assert choice(reasoning_effort="low") != plain
