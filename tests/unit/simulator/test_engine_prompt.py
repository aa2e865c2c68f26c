"""Names of a prompt's blocks: what is shared, what is not, and that they agree with the counts."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_codec import request_of
from tpo_mp.dialects.canonical import ModelReply, ReplyChoice, TextBlock
from tpo_mp.simulator.engine_prompt import MOST_NAMES, block_names, prompt_sequence
from tpo_mp.simulator.tokens import EXACT, count, prompt_tokens

SIZE = 4
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells of rain.",
                                         "parameters": {"type": "object"}}}  # fmt: skip
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def asked(*said: str, **more: Any) -> dict[str, Any]:
    """A conversation: user, assistant, user, …"""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
    return {"model": "m", "messages": messages, **more}


def names(body: dict[str, Any], answer: str | None = None, salt: str = "") -> list[bytes]:
    """The names of a body's blocks, and of an answer to it."""
    reply = None
    if answer is not None:
        reply = ModelReply(id="r", model="m", choices=(ReplyChoice((TextBlock(answer),)),))
    return block_names([request_of(body)], reply, SIZE, salt)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_sequence_is_as_long_as_the_prompt_counts(
    said: list[str], tools: bool, image: bool
) -> None:
    """Whatever is in it."""
    body = asked(*said)
    if tools:
        body["tools"] = [TOOL]
        body["messages"].insert(0, {"role": "system", "content": "Be kind."})
    if image:
        body["messages"].append({"role": "user", "content": [IMAGE]})
    request = request_of(body)
    assert len(list(prompt_sequence([request]))) == prompt_tokens(request)


def test_very_long_text_is_as_long_as_it_counts() -> None:
    """Also beyond the point where tokens are estimated, and no more than so many are named."""
    request = request_of(asked("word " * EXACT))
    assert len(list(prompt_sequence([request]))) == prompt_tokens(request)
    assert len(block_names([request], None, SIZE, "")) == MOST_NAMES


def test_prompts_share_their_equal_beginning() -> None:
    """Up to the block in which they differ, and nothing after it."""
    rivers = names(asked("Tell me all that is known about rivers and " + "fish " * 20))
    bridges = names(asked("Tell me all that is known about bridges and " + "fish " * 20))
    same = [a == b for a, b in zip(rivers, bridges, strict=False)]
    differ_at = (3 + count("Tell me all that is known about")) // SIZE
    assert same == [at < differ_at for at in range(len(same))]
    assert not set(rivers[differ_at:]) & set(bridges)


def test_next_turn_finds_the_answer_of_the_last() -> None:
    """The answer comes back as a message, and lies where it was generated."""
    answer = "They run from the hills to the sea, and never twice."
    first = names(asked("Tell me about rivers"), answer)
    second = names(asked("Tell me about rivers", answer, "And bridges?"))
    assert second[: len(first)] == first
    whole = 3 + count("Tell me about rivers") + 1 + 3 + count(answer)
    assert len(first) == whole // SIZE


def test_salt_separates_tenants() -> None:
    """Not one name in common."""
    body = asked("Tell me about rivers")
    assert names(body, salt="a") == names(body, salt="a")
    assert not set(names(body, salt="a")) & set(names(body, salt="b"))
