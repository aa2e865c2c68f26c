"""OpenAI responses: request checks, the tap, and the codec's parts in one place.

Source: OpenAI API reference, responses; errors as the other OpenAI endpoints send them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tpo_mp.errors import TpoError
from tpo_mp.types import Usage

from .body import RoutedHead, strip_routing_fields, typed, user_id, with_model, with_stream
from .failure import upstream_error as error_to_canonical
from .openai_responses_reply import reply_from_canonical, reply_to_canonical
from .openai_responses_request import (
    APPROXIMATES,
    CARRIES,
    NAME,
    NAMES,
    input_items,
    request_from_canonical,
    request_to_canonical,
)
from .openai_responses_stream import ResponsesDecoder as StreamDecoder
from .openai_responses_stream import ResponsesEncoder as StreamEncoder
from .openai_responses_stream import error_wire
from .openai_wire import error_body, error_status
from .watch import StreamWatch

__all__ = [
    "API", "APPROXIMATES", "CARRIES", "NAME", "NAMES", "ResponsesRequest", "StreamDecoder",
    "StreamEncoder", "decode_request", "error_body", "error_event", "error_status",
    "error_to_canonical", "input_items", "reply_from_canonical", "reply_to_canonical",
    "request_from_canonical", "request_to_canonical", "strip_routing_fields", "usage_of", "watch",
    "with_model", "with_stream",
]  # fmt: skip

API = "responses"


class ResponsesRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are OpenAI's documented ones or wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=10_000)] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=256)] | None = None
    conversation: str | dict[str, Any] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        if self.prompt_cache_key:
            return self.prompt_cache_key
        if isinstance(self.conversation, str):
            return self.conversation
        return user_id(self.metadata) or self.user

    @property
    def usage_wanted(self) -> bool:
        """Every reply of this dialect shows usage."""
        return True


_decode_request = msgspec.json.Decoder(ResponsesRequest).decode


def decode_request(body: bytes) -> ResponsesRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)


def error_event(error: TpoError) -> bytes:
    """The in-band event that makes SDKs raise, for a stream whose numbers are not known."""
    return error_wire(error, 0)


# -- the passed-through stream --------------------------------------------------------------------


class _Details(Struct, gc=False):
    cached_tokens: int | None = None


class _Counts(Struct, gc=False):
    input_tokens: int = -1
    output_tokens: int = -1
    input_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        details = self.input_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        return Usage(self.input_tokens, self.output_tokens, cached)


class _Head(Struct, gc=False):
    usage: _Counts | None = None
    status: str | None = None


class _Seen(Struct, gc=False):
    type: str = ""
    response: _Head | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_seen = msgspec.json.Decoder(_Seen).decode
_MARKS = (b"response.completed", b"response.incomplete", b"response.failed", b"event: error",
          b'"type":"error"', b'"type": "error"')  # fmt: skip


def usage_of(body: bytes) -> Usage | None:
    """Token counts of a whole reply; raises ``ValueError`` when the body is not a JSON object."""
    counts = _decode_head(body).usage
    return None if counts is None else counts.usage()


def watch() -> StreamWatch:
    """A tap; the stream must end with ``response.completed``, ``.incomplete`` or ``.failed``."""
    return StreamWatch(_MARKS, _look)


def _look(seen: StreamWatch, _name: bytes, data: bytes) -> None:
    try:
        event = _decode_seen(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if event.type == "error":
        seen.failed = True
    elif event.type in ("response.completed", "response.incomplete", "response.failed"):
        seen.ended = True
        seen.failed = event.type == "response.failed"
        seen.finish_reason = event.type.removeprefix("response.")
        if event.response is not None and event.response.usage is not None:
            seen.usage = event.response.usage.usage()
