"""The route of each dialect, as metrics and the journal name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tpo_mp.types import Dialect

PATHS: Final[Mapping[Dialect, str]] = {
    Dialect.OPENAI_CHAT: "/v1/chat/completions",
    Dialect.OPENAI_COMPLETIONS: "/v1/completions",
    Dialect.OPENAI_EMBEDDINGS: "/v1/embeddings",
    Dialect.OPENAI_RESPONSES: "/v1/responses",
    Dialect.ANTHROPIC_MESSAGES: "/v1/messages",
    Dialect.ANTHROPIC_COUNT: "/v1/messages/count_tokens",
    Dialect.ANTHROPIC_COMPLETE: "/v1/complete",
    Dialect.GEMINI: "/v1beta/models/{model}:generateContent",
    Dialect.GEMINI_COUNT: "/v1beta/models/{model}:countTokens",
    Dialect.GEMINI_EMBEDDINGS: "/v1beta/models/{model}:embedContent",
}
