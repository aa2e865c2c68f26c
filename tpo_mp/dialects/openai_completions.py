"""OpenAI legacy completions: request checks and the codec's parts in one place.

Source: OpenAI API reference, completions; a prompt is words, token numbers, or a list of either.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from .body import RoutedHead, strip_routing_fields, typed, with_model, with_stream
from .failure import upstream_error as error_to_canonical
from .openai_completions_body import (
    APPROXIMATES,
    CARRIES,
    NAME,
    NAMES,
    reply_from_canonical,
    reply_to_canonical,
    request_from_canonical,
    request_to_canonical,
)
from .openai_completions_stream import CompletionDecoder as StreamDecoder
from .openai_completions_stream import CompletionEncoder as StreamEncoder
from .openai_wire import error_body, error_event, error_status, usage_of, watch, with_usage

__all__ = [
    "API", "APPROXIMATES", "CARRIES", "NAME", "NAMES", "CompletionRequest", "StreamDecoder",
    "StreamEncoder", "decode_request", "error_body", "error_event", "error_status",
    "error_to_canonical", "reply_from_canonical", "reply_to_canonical", "request_from_canonical",
    "request_to_canonical", "strip_routing_fields", "usage_of", "watch", "with_model",
    "with_stream", "with_usage",
]  # fmt: skip

API = "completions"


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class CompletionRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are OpenAI's documented ones or wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        return self.prompt_cache_key or self.user

    @property
    def usage_wanted(self) -> bool:
        """Whether the client's stream must show usage."""
        options = self.stream_options
        return options is not None and bool(options.include_usage)


_decode_request = msgspec.json.Decoder(CompletionRequest).decode


def decode_request(body: bytes) -> CompletionRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)
