"""What a request lets its answer cost, in each dialect's words."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tpo_mp.dialects.most_output import most_output
from tpo_mp.types import Dialect

CHAT, LEGACY = Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS


@pytest.mark.parametrize(
    ("dialect", "body", "most"),
    [
        (CHAT, {"max_tokens": 50}, 50),
        (CHAT, {"max_completion_tokens": 60}, 60),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": 60, "n": 3}, 180),
        (CHAT, {}, 7),
        (CHAT, {"n": 2}, 14),
        (CHAT, {"max_tokens": None}, 7),
        (LEGACY, {"max_tokens": 10, "best_of": 4, "n": 2, "prompt": "a"}, 40),
        (LEGACY, {"max_tokens": 10, "n": 2, "prompt": ["a", "b", "c"]}, 60),
        (LEGACY, {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        (LEGACY, {"max_tokens": 10, "prompt": [[1, 2], [3]]}, 20),
        (LEGACY, {"max_tokens": 0, "prompt": "a"}, 0),
        (Dialect.OPENAI_RESPONSES, {"max_output_tokens": 90}, 90),
        (Dialect.ANTHROPIC_MESSAGES, {"max_tokens": 80}, 80),
        (Dialect.ANTHROPIC_COMPLETE, {"max_tokens_to_sample": 70}, 70),
        (Dialect.GEMINI, {"generationConfig": {"maxOutputTokens": 30, "candidateCount": 2}}, 60),
        (Dialect.GEMINI, {"generationConfig": None, "max_tokens": 99}, 7),
        (Dialect.GEMINI, {}, 7),
        (Dialect.OPENAI_EMBEDDINGS, {"max_tokens": 50}, 0),
        (Dialect.GEMINI_EMBEDDINGS, {}, 0),
        (Dialect.ANTHROPIC_COUNT, {"max_tokens": 50}, 0),
        (CHAT, {"max_tokens": "many", "n": "few"}, 7),
        (CHAT, {"max_tokens": -5, "n": -5}, 7),
        (CHAT, {"max_tokens": True, "n": True}, 7),
        (CHAT, {"max_tokens": 1e300, "n": 1e300}, 7),
        (CHAT, {"max_tokens": 5, "n": 10**6}, 5 * 128),
        (CHAT, ["max_tokens"], 7),
    ],
)  # fmt: skip
def test_each_dialect_says_it_in_its_own_field(dialect: Dialect, body: Any, most: int) -> None:
    """Per answer, times the answers; what makes no sense counts as not said."""
    assert most_output(dialect, orjson.dumps(body), 7) == most


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"max_tokens": 5', b"[" * 5000])
def test_what_is_no_json_is_judged_elsewhere(body: bytes) -> None:
    """Here it only says nothing."""
    assert most_output(CHAT, body, 7) == 7
