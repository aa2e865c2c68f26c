"""The question of a request, and where context goes, in each dialect."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tpo_mp.dialects.prompt_context import MOST_QUESTION, question_of, with_context
from tpo_mp.types import Dialect

_USER = {"role": "user", "content": [{"type": "text", "text": "why?"}, {"type": "image_url"}]}
_SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    ("dialect", "body", "changed"),
    [
        (Dialect.OPENAI_CHAT, {"messages": [_SYSTEM, _USER, {"role": "tool", "content": "x"}]},
         {"messages": [_SYSTEM, {"role": "system", "content": "CTX"}, _USER,
                       {"role": "tool", "content": "x"}]}),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": "why?", "n": 2},
         {"prompt": "CTX\n\nwhy?", "n": 2}),
        (Dialect.ANTHROPIC_COMPLETE, {"prompt": "why?"}, {"prompt": "CTX\n\nwhy?"}),
        (Dialect.OPENAI_RESPONSES, {"input": "why?"}, {"input": "why?", "instructions": "CTX"}),
        (Dialect.OPENAI_RESPONSES, {"input": [_USER], "instructions": "be kind"},
         {"input": [_USER], "instructions": "be kind\n\nCTX"}),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": [_USER], "system": "be kind"},
         {"messages": [_USER], "system": "be kind\n\nCTX"}),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": [_USER], "system": [{"type": "text"}]},
         {"messages": [_USER], "system": [{"type": "text"}, {"type": "text", "text": "CTX"}]}),
        (Dialect.GEMINI, {"contents": [{"parts": [{"text": "why?"}]}]},
         {"contents": [{"parts": [{"text": "why?"}]}],
          "systemInstruction": {"parts": [{"text": "CTX"}]}}),
        (Dialect.GEMINI, {"contents": [{"role": "user", "parts": [{"text": "why?"}]}],
                          "system_instruction": {"parts": {"text": "be kind"}}},
         {"contents": [{"role": "user", "parts": [{"text": "why?"}]}],
          "system_instruction": {"parts": [{"text": "be kind"}, {"text": "CTX"}]}}),
    ],
)  # fmt: skip
def test_context_goes_in_front_of_the_question(dialect: Dialect, body: Any, changed: Any) -> None:
    """And nothing else changes."""
    given = copy.deepcopy(body)
    assert question_of(dialect, given) == "why?"
    assert with_context(dialect, given, "CTX")
    assert given == changed


def test_what_asks_nothing_in_words_has_no_question() -> None:
    """Nor have token ids a place for context; a long question is its end."""
    bodies: list[Any] = [None, [], {}, {"messages": ""}, {"messages": [{"role": "assistant"}]},
                         {"messages": [{"role": "user", "content": 5}]}]  # fmt: skip
    for body in bodies:
        assert question_of(Dialect.OPENAI_CHAT, body) == ""
    assert question_of(Dialect.OPENAI_COMPLETIONS, {"prompt": [1, 2]}) == ""
    assert not with_context(Dialect.OPENAI_COMPLETIONS, {"prompt": ["a", "b"]}, "CTX")
    long = "a" * 9000 + "why?"
    asked = question_of(Dialect.OPENAI_COMPLETIONS, {"prompt": long})
    assert (len(asked), asked[-4:]) == (MOST_QUESTION, "why?")
