"""Anthropic messages: request checks, the tap, and the codec's parts in one place.

Source: Anthropic API reference, messages and count tokens.

The request decoder reads only what the gateway needs and checks the types of what it knows; every
other field stays in the body untouched.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from tpo_mp.types import Usage

from .anthropic_messages_body import (
    APPROXIMATES,
    CARRIES,
    DEFAULT_MAX_TOKENS,
    NAME,
    NAMES,
    reply_from_canonical,
    reply_to_canonical,
    request_from_canonical,
    request_to_canonical,
)
from .anthropic_messages_stream import MessagesDecoder as StreamDecoder
from .anthropic_messages_stream import MessagesEncoder as StreamEncoder
from .anthropic_wire import error_body, error_event, error_object, error_status
from .body import RoutedHead, strip_routing_fields, typed, user_id, with_model, with_stream
from .failure import upstream_error as error_to_canonical
from .watch import StreamWatch

__all__ = [
    "API", "APPROXIMATES", "CARRIES", "COUNT_API", "DEFAULT_MAX_TOKENS", "NAME", "NAMES",
    "CountRequest", "MessagesRequest", "StreamDecoder", "StreamEncoder", "decode_count_request",
    "decode_request", "error_body", "error_event", "error_object", "error_status",
    "error_to_canonical", "reply_from_canonical", "reply_to_canonical", "request_from_canonical",
    "request_to_canonical", "strip_routing_fields", "token_count", "usage_of", "watch",
    "with_model", "with_stream",
]  # fmt: skip

API = "messages"
COUNT_API = "messages/count_tokens"


class _Turn(Struct, gc=False):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | UnsetType = UNSET


class CountRequest(RoutedHead, gc=False):
    """The typed part of a token count request."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_Turn], Meta(min_length=1, max_length=100_000)]
    system: str | list[dict[str, Any]] | None = None
    metadata: Any = None

    @property
    def stream(self) -> bool | None:
        """A count is never streamed."""
        return None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        return user_id(self.metadata)

    @property
    def usage_wanted(self) -> bool:
        """Every reply of this dialect shows usage."""
        return True


class MessagesRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are Anthropic's documented ones or wide safety caps.

    ``max_tokens`` 0 is allowed: it warms the provider's cache.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_Turn], Meta(min_length=1, max_length=100_000)]
    max_tokens: Annotated[int, Meta(ge=0, le=10_000_000)]
    stream: bool | None = None
    system: str | list[dict[str, Any]] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    metadata: Any = None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        return user_id(self.metadata)

    @property
    def usage_wanted(self) -> bool:
        """Every reply of this dialect shows usage."""
        return True


_decode_request = msgspec.json.Decoder(MessagesRequest).decode
_decode_count = msgspec.json.Decoder(CountRequest).decode


def decode_request(body: bytes) -> MessagesRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)


def decode_count_request(body: bytes) -> CountRequest:
    """Check the body of a token count; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_count, body)


def token_count(tokens: int) -> bytes:
    """The answer to a token count."""
    return orjson.dumps({"input_tokens": tokens})


# -- the passed-through stream --------------------------------------------------------------------


class _Counts(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    def usage(self, before: Usage | None) -> Usage:
        """Counts as the gateway books them: a prompt is read whole, cached or not."""
        prompt, cached = (-1, 0) if before is None else (before.prompt, before.cached)
        if self.input_tokens is not None:
            cached = self.cache_read_input_tokens or 0
            prompt = self.input_tokens + (self.cache_creation_input_tokens or 0) + cached
        return Usage(prompt, -1 if self.output_tokens is None else self.output_tokens, cached)


class _Head(Struct, gc=False):
    usage: _Counts | None = None


class _SeenDelta(Struct, gc=False):
    stop_reason: str | None = None


class _Seen(Struct, gc=False):
    type: str = ""
    message: _Head | None = None
    delta: _SeenDelta | None = None
    usage: _Counts | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_seen = msgspec.json.Decoder(_Seen).decode
_MARKS = (b"message_delta", b"message_stop", b"message_start", b"event: error", b'"error"')


def usage_of(body: bytes) -> Usage | None:
    """Token counts of a whole reply; raises ``ValueError`` when the body is not a JSON object."""
    counts = _decode_head(body).usage
    return None if counts is None else counts.usage(None)


def watch() -> StreamWatch:
    """A tap; the stream must end with the event ``message_stop``."""
    return StreamWatch(_MARKS, _look)


def _look(seen: StreamWatch, _name: bytes, data: bytes) -> None:
    try:
        event = _decode_seen(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if event.type == "message_stop":
        seen.ended = True
    elif event.type == "error":
        seen.failed = True
    elif event.type == "message_start" and event.message is not None and event.message.usage:
        seen.usage = event.message.usage.usage(None)
    elif event.type == "message_delta":
        if event.usage is not None:
            seen.usage = event.usage.usage(seen.usage)
        if event.delta is not None:
            seen.finish_reason = event.delta.stop_reason or seen.finish_reason
