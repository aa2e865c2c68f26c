"""Requests of any API as conditions read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.raw import chat
from tpo_mp.errors import Rejected
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator.readings import reading
from tpo_mp.simulator.tokens import prompt_tokens
from tpo_mp.types import Call, Dialect


def call(body: Any, dialect: Dialect) -> Call:
    """A call with that body."""
    return make_call(json.dumps(body).encode(), model="m", dialect=dialect)


@pytest.mark.parametrize(
    ("body", "dialect", "tokens"),
    [
        (chat("big rivers"), Dialect.OPENAI_CHAT, 9),
        ({"model": "m", "prompt": ["big rivers", "x"]}, Dialect.OPENAI_COMPLETIONS, 2),
        ({"model": "m", "input": ["big", "rivers"]}, Dialect.OPENAI_EMBEDDINGS, 2),
        ({"model": "m", "input": "big rivers"}, Dialect.OPENAI_RESPONSES, 9),
        ({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "big rivers"}]},
         Dialect.ANTHROPIC_MESSAGES, 9),
    ],
)  # fmt: skip
def test_words_and_size_are_read(body: Any, dialect: Dialect, tokens: int) -> None:
    """As usage will say; a legacy prompt has no frame."""
    request = reading(codec(dialect), call(body, dialect))
    assert prompt_tokens(request) == tokens
    said = " ".join(b.text for m in request.messages for b in m.blocks if hasattr(b, "text"))
    assert "rivers" in said


def test_what_cannot_be_read_is_refused_as_its_answer_would_be() -> None:
    """By whoever asks."""
    with pytest.raises(Rejected):
        reading(codec(Dialect.OPENAI_CHAT), call({"messages": 7}, Dialect.OPENAI_CHAT))
