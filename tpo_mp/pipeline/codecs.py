"""Finds a dialect's codec by name; a dialect nobody uses is not imported."""

from __future__ import annotations

import importlib
from typing import cast

from tpo_mp.dialects.codec import Codec
from tpo_mp.types import Dialect

_MODULES = {
    Dialect.OPENAI_CHAT: "openai_chat",
    Dialect.OPENAI_COMPLETIONS: "openai_completions",
    Dialect.OPENAI_EMBEDDINGS: "openai_embeddings",
    Dialect.OPENAI_RESPONSES: "openai_responses",
    Dialect.ANTHROPIC_MESSAGES: "anthropic_messages",
    # Counting is a question in the same dialect, asked at another endpoint.
    Dialect.ANTHROPIC_COUNT: "anthropic_messages",
    Dialect.ANTHROPIC_COMPLETE: "anthropic_complete",
    Dialect.GEMINI: "gemini",
    Dialect.GEMINI_COUNT: "gemini",
    Dialect.GEMINI_EMBEDDINGS: "gemini",
}
_known: dict[str, Codec] = {}

GENERATES = frozenset(
    (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.OPENAI_RESPONSES,
     Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COMPLETE)
)  # fmt: skip
"""Dialects that can be said in one another; the rest only pass through."""


def codec(dialect: Dialect) -> Codec:
    """The codec of a dialect."""
    found = _known.get(dialect)
    if found is None:
        module = importlib.import_module(f"tpo_mp.dialects.{_MODULES[dialect]}")
        found = _known[dialect] = cast("Codec", module)  # a module is the object the Protocol draws
    return found
