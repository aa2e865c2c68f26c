"""The models a simulator has when nobody names any, and what is known of a model by its name.

Names, vector sizes and owners are the providers' own, as their model pages list them.
A name nobody knows is a chat model without any restriction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["chat", "completion", "embedding", "any"]


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What a model does; ``dimensions`` are its vector's, ``shortens`` says it takes fewer."""

    kind: Kind = "any"
    dimensions: int = 1536
    shortens: bool = True
    reasons: bool = False


_KNOWN: Final[dict[str, ModelTraits]] = {
    "gpt-5.5": ModelTraits("chat"),
    "gpt-5.4-mini": ModelTraits("chat"),
    "gpt-5": ModelTraits("chat", reasons=True),
    "gpt-5-mini": ModelTraits("chat", reasons=True),
    "gpt-4o": ModelTraits("chat"),
    "gpt-4o-mini": ModelTraits("chat"),
    "gpt-4-turbo": ModelTraits("chat"),
    "gpt-4": ModelTraits("chat"),
    "gpt-3.5-turbo": ModelTraits("chat"),
    "gpt-3.5-turbo-instruct": ModelTraits("completion"),
    "o3": ModelTraits("chat", reasons=True),
    "o4-mini": ModelTraits("chat", reasons=True),
    "text-embedding-3-small": ModelTraits("embedding", 1536),
    "text-embedding-3-large": ModelTraits("embedding", 3072),
    "text-embedding-ada-002": ModelTraits("embedding", 1536, shortens=False),
    "claude-opus-5": ModelTraits("chat"),
    "claude-sonnet-5": ModelTraits("chat"),
    "claude-opus-4-8": ModelTraits("chat"),
    "claude-sonnet-4-6": ModelTraits("chat"),
    "claude-haiku-4-5": ModelTraits("chat"),
    "claude-2.1": ModelTraits("any"),
}

MODELS: Final = tuple(_KNOWN)
"""Names served when the config names none."""

_ANY: Final = ModelTraits()


def traits_of(model: str) -> ModelTraits:
    """What is known of a model; a dated name (``gpt-4o-2024-08-06``) is its family's."""
    found = _KNOWN.get(model)
    if found is not None:
        return found
    families = [name for name in _KNOWN if model.startswith(f"{name}-20")]
    return _KNOWN[max(families, key=len)] if families else _ANY
