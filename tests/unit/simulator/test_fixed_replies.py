"""Replies made in one pass are those that are composed step by step."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_codec import finished
from tpo_mp.dialects import support
from tpo_mp.errors import InvalidRequest, Rejected
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.fixed_replies import (
    MOST_WRITTEN,
    MOST_WRITTEN_CHARS,
    FixedReply,
)
from tpo_mp.simulator.provider import SimulatedProvider
from tpo_mp.simulator.rules import RuleBook
from tpo_mp.types import Dialect, Usage

TEXT = 'one two "usage":{"prompt_tokens":7,"total_tokens":8} three %d "é" four'
USER = {"role": "user", "content": "rivers"}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MODELS = st.sampled_from(["m", 'm"usage":{"prompt_tokens":', "gpt-4o", "gpt-4", "o3", "claude-2.1",
                          "text-embedding-3-small", "gpt-3.5-turbo-instruct"])  # fmt: skip
BODIES = st.fixed_dictionaries(
    {
        "model": MODELS | WORDS,
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant"]), "content": WORDS}
            ),
            max_size=4,
        ),
    },
    optional={"max_tokens": st.none() | st.integers(-3, 9), "n": st.none() | st.integers(-1, 3),
              "temperature": st.floats(0, 2), "seed": st.integers(), "stop": WORDS,
              "user": WORDS},
)  # fmt: skip


def provider(text: str = TEXT) -> SimulatedProvider:
    """One that always says the same."""
    return SimulatedProvider(Speech(strategy="fixed", text=text))


def told(body: bytes, usage: Usage, finish: str) -> tuple[bytes, int, int, str]:
    """A reply without its id and its moment."""
    found = json.loads(body)
    assert found["id"].startswith("chatcmpl-")
    assert len(found["id"]) == 38
    created = b'"created":%d' % found["created"]
    bare = body.replace(found["id"].encode(), b"", 1).replace(created, b"", 1)
    return bare, usage.prompt, usage.completion, finish


def composed(made: SimulatedProvider, raw: bytes) -> Any:
    """What the general way says, or what it says against it."""
    codec = support.codec("openai_chat")
    try:
        found = finished(made.generate(codec, Dialect.OPENAI_CHAT, raw, ""))
    except (InvalidRequest, Rejected) as error:
        return error
    return told(found.body(), found.usage, found.finish_reason)


def at_once(made: SimulatedProvider, raw: bytes) -> FixedReply | None:
    """What is answered in one pass."""
    assert made.fixed is not None
    return made.fixed.reply_to(raw)


@given(BODIES)
def test_same_reply_either_way(asked: dict[str, Any]) -> None:
    """Byte for byte, the first time and the second, or else it is left to the general way."""
    made, raw = provider(), json.dumps(asked).encode()
    for _ in range(2):
        found = at_once(made, raw)
        if found is not None:
            assert told(*found) == composed(made, raw)


def test_load_test_is_answered_in_one_pass() -> None:
    """With instructions, a limit and the usual numbers; and of nothing but the prompt."""
    for more in ({}, {"max_tokens": 5, "temperature": 0.5, "n": 1, "seed": 1, "user": "me"}):
        asked = {"model": "gpt-4o", "messages": [{"role": "system", "content": "be brief"}, USER]}
        raw = orjson.dumps(asked | more)
        found = at_once(provider(), raw)
        assert found is not None
        assert told(*found) == composed(provider(), raw)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []}, {"n": 2}, {"logprobs": True}, {"stop": ["two"]}, {"model": "o3"},
        {"model": "text-embedding-3-small"}, {"messages": [{"role": "tool", "content": "x"}]},
        {"model": "gpt-4", "messages": [{"role": "user", "content": "x y " * 9000}]},
        {"max_tokens": "many"}, {"model": "gpt-4o", "max_tokens": 16_385},
    ],
)  # fmt: skip
def test_whatever_is_not_so_plain_goes_the_general_way(more: dict[str, Any]) -> None:
    """Choices, thoughts, tools, a prompt that is too long, a model of another kind, a mistake."""
    assert at_once(provider(), orjson.dumps({"model": "m", "messages": [USER]} | more)) is None


def test_rules_come_first() -> None:
    """A provider with rules of answers, or one that makes its answers up, has no such replies."""
    ruled = RuleBook((), True, lambda _name: 1)
    assert SimulatedProvider(Speech(strategy="fixed"), ruled).fixed is None
    assert SimulatedProvider(Speech(strategy="template")).fixed is None


def test_what_is_remembered_is_bounded() -> None:
    """Models without end are answered all the same; a long text goes the general way."""
    made = provider()
    for number in range(2 * MOST_WRITTEN + 1):
        raw = orjson.dumps({"model": f"m{number}", "messages": [USER]})
        found = at_once(made, raw)
        assert found is not None
        assert json.loads(found.body)["model"] == f"m{number}"
    assert made.fixed is not None
    assert 0 < made.fixed.remembered <= MOST_WRITTEN
    long = provider("word " * MOST_WRITTEN_CHARS)
    assert at_once(long, orjson.dumps({"model": "m", "messages": [USER]})) is None
