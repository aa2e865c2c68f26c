"""The models a simulator has when nobody names any, and what is known of a model by its name.

Names and vector sizes are the providers' own, as their model pages list them; where each limit in
tokens comes from is told by ``GROUNDS``.
A name nobody knows is a chat model without any restriction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["chat", "completion", "embedding", "any"]


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What a model does; ``dimensions`` are its vector's, ``shortens`` says it takes fewer.

    ``context`` and ``most_output`` are limits in tokens, 0: none that we know of.
    """

    kind: Kind = "any"
    dimensions: int = 1536
    shortens: bool = True
    reasons: bool = False
    context: int = 0
    most_output: int = 0


_KNOWN: Final[dict[str, ModelTraits]] = {
    "gpt-5.5": ModelTraits("chat"),
    "gpt-5.4-mini": ModelTraits("chat"),
    "gpt-5": ModelTraits("chat", reasons=True, context=400_000, most_output=128_000),
    "gpt-5-mini": ModelTraits("chat", reasons=True, context=400_000, most_output=128_000),
    "gpt-4o": ModelTraits("chat", context=128_000, most_output=16_384),
    "gpt-4o-mini": ModelTraits("chat", context=128_000, most_output=16_384),
    "gpt-4-turbo": ModelTraits("chat", context=128_000, most_output=4_096),
    "gpt-4": ModelTraits("chat", context=8_192, most_output=8_192),
    "gpt-3.5-turbo": ModelTraits("chat", context=16_385, most_output=4_096),
    "gpt-3.5-turbo-instruct": ModelTraits("completion", context=4_096, most_output=4_096),
    "o3": ModelTraits("chat", reasons=True, context=200_000, most_output=100_000),
    "o4-mini": ModelTraits("chat", reasons=True, context=200_000, most_output=100_000),
    "text-embedding-3-small": ModelTraits("embedding", 1536),
    "text-embedding-3-large": ModelTraits("embedding", 3072),
    "text-embedding-ada-002": ModelTraits("embedding", 1536, shortens=False),
    "claude-opus-5": ModelTraits("chat"),
    "claude-sonnet-5": ModelTraits("chat"),
    "claude-opus-4-8": ModelTraits("chat"),
    "claude-sonnet-4-6": ModelTraits("chat"),
    "claude-haiku-4-5": ModelTraits("chat", context=200_000, most_output=64_000),
    "claude-2.1": ModelTraits("any", context=200_000, most_output=4_096),
    "gemini-2.5-pro": ModelTraits("chat", reasons=True, context=1_048_576, most_output=65_536),
    "gemini-2.5-flash": ModelTraits("chat", context=1_048_576, most_output=65_536),
    "gemini-2.0-flash": ModelTraits("chat", context=1_048_576, most_output=8_192),
    "gemini-embedding-001": ModelTraits("embedding", 3072, context=2_048),
}

_OPENAI: Final = "developers.openai.com/api/docs/models/{}"
_READ: Final = "2026-11-27"
DESIGN: Final = "design"
"""The label of what no page was found for: a number chosen here."""
GROUNDS: Final[dict[str, tuple[str, str]]] = {
    **{
        name: (f"{_OPENAI.format(name)}, {_READ}",) * 2
        for name in ("gpt-4-turbo", "gpt-4", "gpt-3.5-turbo", "gpt-3.5-turbo-instruct")
    },
    "gpt-4o": (f"vercel.com/ai-gateway/models/gpt-4o-fast, {_READ}",) * 2,
    "gpt-4o-mini": (f"vercel.com/ai-gateway/models/gpt-4o-mini-fast, {_READ}",) * 2,
    "o4-mini": (f"vercel.com/ai-gateway/models/o4-mini-fast, {_READ}",) * 2,
    "claude-2.1": ("www.anthropic.com/news/claude-2-1, 2023-11-21", DESIGN),
}
"""Of a model, where its context and its longest answer come from, and when that was read or said;
a model with limits that is not here has them by ``design``."""

MODELS: Final = tuple(_KNOWN)
"""Names served when the config names none."""

_ANY: Final = ModelTraits()
_TALKS: Final = ("generateContent", "countTokens")
GOOGLE_METHODS: Final[dict[Kind, tuple[str, ...]]] = {
    "chat": _TALKS, "completion": (), "embedding": ("embedContent", "batchEmbedContents"),
    "any": (*_TALKS, "embedContent", "batchEmbedContents"),
}  # fmt: skip
"""What a kind of model can be asked over Gemini's API."""


@lru_cache(maxsize=1024)
def traits_of(model: str) -> ModelTraits:
    """What is known of a model; a dated name (``gpt-4o-2024-08-06``) is its family's."""
    found = _KNOWN.get(model)
    if found is not None:
        return found
    families = [name for name in _KNOWN if model.startswith(f"{name}-20")]
    return _KNOWN[max(families, key=len)] if families else _ANY
