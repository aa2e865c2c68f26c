"""How many tokens a request lets its answer have: what a budget must set aside for it.

Each dialect's own field says it, once per answer that is asked for: ``n`` of chat, ``n`` or
``best_of`` of each prompt of completions, ``candidateCount`` of Gemini.

Invariants: never fewer than the backend may make of the same body; embeddings and counted tokens
have no output.  A field that is no sensible number says nothing: judging it is not done here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from tpo_mp.types import Dialect


class _Asked(Struct, gc=False):
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_tokens_to_sample: Any = None
    n: Any = None
    best_of: Any = None


class _Prompts(Struct, gc=False):
    prompt: Any = None


class _Generation(Struct, gc=False, rename="camel"):
    max_output_tokens: Any = None
    candidate_count: Any = None


class _Gemini(Struct, gc=False, rename="camel"):
    generation_config: _Generation | None = None


_asked = msgspec.json.Decoder(_Asked).decode
_prompts = msgspec.json.Decoder(_Prompts).decode
_gemini = msgspec.json.Decoder(_Gemini).decode

NO_OUTPUT: Final = frozenset(
    {
        Dialect.OPENAI_EMBEDDINGS,
        Dialect.GEMINI_EMBEDDINGS,
        Dialect.ANTHROPIC_COUNT,
        Dialect.GEMINI_COUNT,
    }
)
COUNTING: Final = frozenset({Dialect.ANTHROPIC_COUNT, Dialect.GEMINI_COUNT})
"""Calls that use no tokens at all: they only count them."""
_COMPLETIONS: Final = Dialect.OPENAI_COMPLETIONS
_GEMINI_CHAT: Final = Dialect.GEMINI
_MOST_ANSWERS: Final = 128
_MOST_SAID: Final = 10_000_000


def most_output(dialect: Dialect, body: bytes, unsaid: int) -> int:
    """The most tokens of all answers together; ``unsaid`` for each one the body does not limit."""
    if dialect in NO_OUTPUT:
        return 0
    try:
        if dialect is _GEMINI_CHAT:
            made = _gemini(body).generation_config or _Generation()
            said = _number(made.max_output_tokens)
            return (unsaid if said is None else said) * _answers(made.candidate_count)
        asked = _asked(body)
        if (
            asked.max_completion_tokens
            is asked.max_output_tokens
            is asked.max_tokens_to_sample
            is (asked.n)
            is asked.best_of
            is None
            and dialect is not _COMPLETIONS
        ):
            most = asked.max_tokens  # nearly every body says this alone, or nothing
            if most is None:
                return unsaid
            if type(most) is int and 0 <= most <= _MOST_SAID:
                return most
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return unsaid
    answers = 1
    if asked.n is not None or asked.best_of is not None:
        answers = max(_answers(asked.n), _answers(asked.best_of))
    if dialect is _COMPLETIONS:
        prompts = _prompts(body).prompt
        if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
            answers *= len(prompts)
    return _said(asked, unsaid) * answers


def _said(asked: _Asked, unsaid: int) -> int:
    """Of several limits the largest: which one a backend goes by is its own affair."""
    most = -1
    for value in (
        asked.max_tokens,
        asked.max_completion_tokens,
        asked.max_output_tokens,
        asked.max_tokens_to_sample,
    ):
        if value is not None:
            number = _number(value)
            if number is not None and number > most:
                most = number
    return unsaid if most < 0 else most


def _number(value: object) -> int | None:
    if isinstance(value, int | float) and value is not True and 0 <= value <= _MOST_SAID:
        return int(value)
    return None


def _answers(value: object) -> int:
    return min(max(_number(value) or 1, 1), _MOST_ANSWERS)
