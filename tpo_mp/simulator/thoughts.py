"""How much a simulated model thinks before it answers, and what of that is shown.

A model thinks when it is asked to (a reasoning effort, a thinking budget) or when it always does
(see ``catalog``).  Anthropic shows the thoughts and signs them; OpenAI only counts them, and its
responses show a summary when one is asked for; Gemini shows them to whoever asks.

Invariants: thoughts and answer share ``max_tokens``; a signature is base64 and never empty.
"""

from __future__ import annotations

import base64
from random import Random
from typing import Final

from tpo_mp.dialects.canonical import ModelRequest, ThinkingBlock
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Dialect

from . import texts
from .catalog import traits_of
from .tokens import count, pieces

LEAST_BUDGET: Final = 1024
"""Anthropic's smallest thinking budget."""
_LENGTHS: Final = {"minimal": 8, "low": 32, "medium": 96, "high": 256, "xhigh": 512, "max": 512}
_MOST: Final = 512
_SIGNATURE_BYTES: Final = 96


def check(request: ModelRequest, dialect: Dialect) -> None:
    """Refuse a thinking budget that Anthropic refuses."""
    reasoning = request.reasoning
    if dialect is not Dialect.ANTHROPIC_MESSAGES or reasoning is None or reasoning.budget is None:
        return
    where = "thinking.budget_tokens"
    if reasoning.budget < LEAST_BUDGET:
        said = f"{where}: Input should be greater than or equal to {LEAST_BUDGET}"
        raise InvalidRequest(said, param=where)
    if request.max_tokens is not None and request.max_tokens <= reasoning.budget:
        said = f"`max_tokens` must be greater than `{where}`"
        raise InvalidRequest(said, param="max_tokens")


def effort_of(request: ModelRequest, dialect: Dialect) -> str:
    """How hard the model thinks; empty when it does not."""
    reasoning = request.reasoning
    anthropic = dialect is Dialect.ANTHROPIC_MESSAGES
    if reasoning is None:
        return "medium" if traits_of(request.model).reasons and not anthropic else ""
    if anthropic:
        return (reasoning.effort or "medium") if reasoning.mode in ("enabled", "adaptive") else ""
    return "" if reasoning.effort == "none" else (reasoning.effort or "medium")


def think(request: ModelRequest, dialect: Dialect, prompt: str, random: Random) -> str:
    """The thoughts' text; empty when the model does not think."""
    wanted = effort_of(request, dialect)
    if not wanted:
        return ""
    reasoning = request.reasoning
    length = _LENGTHS.get(wanted, _LENGTHS["medium"])
    if reasoning is not None and reasoning.budget is not None:
        length = min(length, reasoning.budget)
    return texts.say("template", prompt, length, random, "")


def shown(
    request: ModelRequest, dialect: Dialect, text: str, random: Random
) -> tuple[ThinkingBlock, ...]:
    """The block a client sees of the thoughts, if it sees one."""
    if not text:
        return ()
    if dialect is Dialect.ANTHROPIC_MESSAGES:
        return (ThinkingBlock(text, _signature(random)),)
    if dialect is Dialect.GEMINI:
        wanted = (request.reasoning.extra if request.reasoning else None) or {}
        return (ThinkingBlock(text),) if wanted.get("includeThoughts") else ()
    if dialect is Dialect.OPENAI_RESPONSES:
        extra = (request.reasoning.extra if request.reasoning else None) or {}
        summary = text if extra.get("summary") else ""
        return (ThinkingBlock(summary),)
    return ()


def cut(text: str, limit: int | None) -> tuple[str, int, bool]:
    """Thoughts within ``limit`` tokens: the text, its tokens, and whether it was cut."""
    used = count(text)
    if limit is None or used <= limit:
        return text, used, False
    return "".join(pieces(text)[:limit]), limit, True


def _signature(random: Random) -> str:
    return base64.b64encode(random.randbytes(_SIGNATURE_BYTES)).decode()
