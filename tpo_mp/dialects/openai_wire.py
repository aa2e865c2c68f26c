"""What OpenAI's chat and legacy completions share on the wire: usage, finish reasons, events."""

from __future__ import annotations

from typing import Any

import orjson
from msgspec import Struct

from .body import Fields
from .canonical import StopReason, TokenUsage

DONE = b"data: [DONE]\n\n"

STOP_OF_FINISH: dict[str, StopReason] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "content_filter",
}
FINISH_OF_STOP: dict[StopReason, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "pause": "stop",
    "length": "length",
    "context": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "content_filter": "content_filter",
}


class PromptDetails(Struct, gc=False):
    """Where prompt tokens came from."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    """Where completion tokens went."""

    reasoning_tokens: int | None = None


class TokenCounts(Struct, gc=False):
    """``usage`` of a reply or chunk."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def canonical(self) -> TokenUsage:
        """The same counts in the one model."""
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        return TokenUsage(
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            (prompt.cached_tokens or 0) if prompt else 0,
            (prompt.cache_write_tokens or 0) if prompt else 0,
            (completion.reasoning_tokens or 0) if completion else 0,
        )


def usage_in(fields: Fields) -> TokenUsage:
    """Read ``usage``."""
    prompt = fields.inner("prompt_tokens_details")
    completion = fields.inner("completion_tokens_details")
    return TokenUsage(
        fields.whole("prompt_tokens") or 0,
        fields.whole("completion_tokens") or 0,
        prompt.whole("cached_tokens") or 0,
        prompt.whole("cache_write_tokens") or 0,
        completion.whole("reasoning_tokens") or 0,
    )


def usage_out(usage: TokenUsage) -> dict[str, Any]:
    """Write ``usage``; details only where there are any."""
    out: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if usage.cached or usage.cache_write:
        details = {"cached_tokens": usage.cached}
        if usage.cache_write:
            details["cache_write_tokens"] = usage.cache_write
        out["prompt_tokens_details"] = details
    if usage.reasoning:
        out["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return out


def data_event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
