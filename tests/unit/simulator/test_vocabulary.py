"""Numbers that hold their tokens: there and back, exactly, and as many as are counted."""

from __future__ import annotations

from itertools import islice

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.dialects import openai_chat
from tpo_mp.simulator import vocabulary
from tpo_mp.simulator.made_requests import bodies
from tpo_mp.simulator.tokens import pieces, prompt_tokens

TEXTS = st.text(st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\u3000aZ9é漢٣_²😀-")
))  # fmt: skip


@given(TEXTS)
def test_a_text_comes_back_from_its_numbers(text: str) -> None:
    """Whatever is in it; each number is its token's own."""
    found = list(vocabulary.words(text))
    assert [piece for _, piece in found] == pieces(text)
    assert "".join(vocabulary.text_of(number) for number, _ in found) == text
    assert all(0 <= number < vocabulary.END for number, _ in found)


@given(st.integers(0, vocabulary.END - 1))
def test_no_two_numbers_have_one_text(number: int) -> None:
    """A number that a text can have is the number of that text."""
    try:
        text = vocabulary.text_of(number)
    except ValueError:
        return  # half a surrogate pair, which no text has
    if pieces(text) == [text]:
        assert vocabulary.number_of(text) == number


@pytest.mark.parametrize("number", [-1, vocabulary.END, 1 << 60])
def test_numbers_beyond_are_none_s(number: int) -> None:
    """At both ends; all of them fit into JavaScript's."""
    assert vocabulary.END < 1 << 53
    with pytest.raises(ValueError, match="no token"):
        vocabulary.text_of(number)


def test_a_conversation_has_as_many_tokens_as_usage_counts() -> None:
    """With instructions, turns and tools; without an opening, three fewer."""
    tooled = 0
    for body in islice(bodies("openai", 3), 100):
        request = openai_chat.request_to_canonical(orjson.dumps(body))
        found = list(vocabulary.conversation(request, opening=True))
        assert len(found) == prompt_tokens(request)
        assert len(list(vocabulary.conversation(request, opening=False))) == len(found) - 3
        assert all(vocabulary.text_of(number) == text for number, text in found)
        tooled += "tools" in body
    assert tooled


def test_calls_results_and_pictures_are_counted_alike() -> None:
    """Whatever a message may hold."""
    call = {"id": "call_1", "type": "function",
            "function": {"name": "f", "arguments": '{"a": 1}'}}  # fmt: skip
    body = {"model": "gpt-4o", "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a river"},
    ]}  # fmt: skip
    request = openai_chat.request_to_canonical(orjson.dumps(body))
    found = list(vocabulary.conversation(request, opening=True))
    assert len(found) == prompt_tokens(request)
