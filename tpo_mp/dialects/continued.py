"""A request that asks a model to go on with what was said in answer to it.

The words become the beginning of the model's own turn.  How it is told to go on, rather than to
begin a new turn, differs::

    prefill   the last message is the assistant's (Anthropic, llama.cpp's server)
    vllm      the same, with ``continue_final_message`` and no generation prompt (vLLM, SGLang)
    prefix    the same, marked ``prefix`` (DeepSeek, Mistral)

A completion's prompt simply becomes longer.  Who wants fewer tokens gets fewer: those said already
are taken off its limit.

Invariants: what cannot be continued truthfully is not: several answers, answers of a shape that a
grammar forces, thoughts.  The client's body is otherwise what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import orjson

from tpo_mp.types import Dialect

Manner: TypeAlias = Literal["prefill", "vllm", "prefix"]
DIALECTS: Final = frozenset(
    (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.ANTHROPIC_MESSAGES)
)
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_FORCED: Final = (
    "grammar", "guided_choice", "guided_grammar", "guided_json", "guided_regex", "json_schema",
    "logprobs", "structured_outputs", "output_config", "output_format", "echo", "suffix",
    "audio", "prediction",
)  # fmt: skip
_FREE: Final = (None, False, "auto", "none")


def continued(
    dialect: Dialect, body: bytes, said: str, tokens: int, manner: Manner
) -> bytes | None:
    """The request for the rest; ``None`` where there is no honest one.

    ``tokens`` were at least said already.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(asked, dict) or not _is_plain(asked):
        return None
    if dialect is Dialect.OPENAI_COMPLETIONS:
        if not isinstance(asked.get("prompt"), str):
            return None
        asked["prompt"] += said
    elif not _with_turn(asked, said, manner):
        return None
    elif manner == "vllm":
        if dialect is not Dialect.OPENAI_CHAT:
            return None
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    for name in _LIMITS:
        most = asked.get(name)
        if isinstance(most, int):
            asked[name] = max(most - tokens, 1)
    return orjson.dumps(asked)


def _is_plain(asked: Mapping[str, Any]) -> bool:
    """Whether it asks for one answer in free words."""
    for name in _FORCED:
        if asked.get(name) not in _FREE:
            return False
    for name in ("n", "best_of"):
        if asked.get(name) not in (None, 1):
            return False
    form, choice, thinking = (
        asked.get(name) for name in ("response_format", "tool_choice", "thinking")
    )
    free_form = form is None or (isinstance(form, dict) and form.get("type") == "text")
    choice = choice.get("type") if isinstance(choice, dict) else choice
    thinks = isinstance(thinking, dict) and thinking.get("type") != "disabled"
    return free_form and choice in _FREE and not thinks


def _with_turn(asked: dict[str, Any], said: str, manner: Manner) -> bool:
    """Begin the assistant's turn with these words; whether that can be said."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    last = messages[-1]
    if last.get("role") == "assistant":  # the client has begun it itself
        if not isinstance(last.get("content"), str):
            return False
        said, messages = last["content"] + said, messages[:-1]
    else:
        last = {"role": "assistant"}
    turn = last | {"content": said}
    if manner == "prefix":
        turn["prefix"] = True
    asked["messages"] = [*messages, turn]
    return True
