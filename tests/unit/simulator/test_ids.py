"""Ids in each provider's look."""

from __future__ import annotations

import re

import pytest

from tpo_mp.simulator.ids import reply_id, tool_call_id
from tpo_mp.types import Dialect


@pytest.mark.parametrize(
    ("dialect", "look"),
    [
        (Dialect.OPENAI_CHAT, r"chatcmpl-\w{29}"),
        (Dialect.OPENAI_COMPLETIONS, r"cmpl-\w{29}"),
        (Dialect.OPENAI_RESPONSES, r"resp_[0-9a-f]{48}"),
        (Dialect.ANTHROPIC_MESSAGES, r"msg_01\w{22}"),
        (Dialect.ANTHROPIC_COMPLETE, r"compl_01\w{22}"),
        (Dialect.GEMINI, r"\w{22}"),
    ],
)
def test_reply_ids_look_like_the_providers(dialect: Dialect, look: str) -> None:
    """Prefix and length, and no two alike."""
    made = {reply_id(dialect) for _ in range(1000)}  # more than one drawing of letters
    assert len(made) == 1000
    assert all(re.fullmatch(look, name) for name in made)


def test_tool_call_ids_do_too() -> None:
    """By family."""
    assert re.fullmatch(r"toolu_01\w{22}", tool_call_id(Dialect.ANTHROPIC_MESSAGES))
    assert re.fullmatch(r"call_\w{24}", tool_call_id(Dialect.OPENAI_CHAT))
