"""Thinking: when, how long, and what is shown of it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.support.fake_codec import asked, request_of
from tpo_mp.dialects.canonical import ModelRequest
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator import thoughts
from tpo_mp.simulator.tokens import count
from tpo_mp.types import Dialect


def claude(**more: Any) -> ModelRequest:
    """A messages request."""
    messages = [{"role": "user", "content": "why"}]
    body = {"model": "claude-opus-5", "max_tokens": 4000, "messages": messages}
    return request_of(body | more, "anthropic_messages")


def thought(request: ModelRequest, dialect: Dialect) -> str:
    """What is thought of a request."""
    return thoughts.think(request, dialect, "why is it so", Random(1))


def test_model_thinks_when_asked_or_when_it_always_does() -> None:
    """By effort, by budget, by nature; else not."""
    chat = Dialect.OPENAI_CHAT
    assert not thought(asked(), chat)
    assert thought(asked(reasoning_effort="low"), chat)
    assert not thought(asked(reasoning_effort="none"), chat)
    assert thought(asked(model="o3"), chat)
    messages = Dialect.ANTHROPIC_MESSAGES
    assert not thought(claude(), messages)
    assert thought(claude(thinking={"type": "enabled", "budget_tokens": 1024}), messages)
    assert not thought(claude(thinking={"type": "disabled"}), messages)


def test_more_effort_thinks_longer() -> None:
    """In the order of the words."""
    lengths = [
        count(thought(asked(reasoning_effort=effort), Dialect.OPENAI_CHAT))
        for effort in ("minimal", "low", "medium", "high")
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_only_who_shows_thoughts_shows_them() -> None:
    """Anthropic with a signature, responses with a summary on request, chat never."""
    request = claude(thinking={"type": "enabled", "budget_tokens": 1024})
    (block,) = thoughts.shown(request, Dialect.ANTHROPIC_MESSAGES, "so", Random(1))
    assert (block.text, bool(block.signature)) == ("so", True)
    assert thoughts.shown(asked(), Dialect.OPENAI_CHAT, "so", Random(1)) == ()
    body = {"model": "o3", "input": "hi", "reasoning": {"summary": "auto"}}
    with_summary = request_of(body, "openai_responses")
    without = request_of(body | {"reasoning": {"effort": "low"}}, "openai_responses")
    responses = Dialect.OPENAI_RESPONSES
    assert thoughts.shown(with_summary, responses, "so", Random(1))[0].text == "so"
    assert thoughts.shown(without, responses, "so", Random(1))[0].text == ""


def test_thoughts_keep_to_the_limit() -> None:
    """What is over is cut, exactly."""
    assert thoughts.cut("one two three", None) == ("one two three", 3, False)
    assert thoughts.cut("one two three", 3) == ("one two three", 3, False)
    assert thoughts.cut("one two three", 2) == ("one two", 2, True)
    assert thoughts.cut("", 0) == ("", 0, False)


@pytest.mark.parametrize("budget", [1023, 4000])
def test_budget_has_bounds(budget: int) -> None:
    """At least 1 024, and below ``max_tokens``."""
    request = claude(thinking={"type": "enabled", "budget_tokens": budget})
    with pytest.raises(InvalidRequest, match="budget_tokens"):
        thoughts.check(request, Dialect.ANTHROPIC_MESSAGES)
