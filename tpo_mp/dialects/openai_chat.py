"""OpenAI chat completions: request checks, reply and stream events, errors.

Source: OpenAI API reference, chat completions; error envelope as its SDKs parse it.

The request decoder reads only what the gateway needs and checks the types of what it knows;
every other field stays in the body untouched.
Routing fields that other gateways honour from the body (``api_base`` and friends) are stripped:
an upstream is the operator's choice alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from tpo_mp.types import Usage

from .body import (
    RoutedHead,
    parse,
    strip_routing_fields,
    typed,
    user_id,
    with_model,
    with_stream,
)
from .failure import upstream_error as error_to_canonical
from .openai_chat_body import (
    APPROXIMATES,
    CARRIES,
    NAME,
    NAMES,
    reply_from_canonical,
    reply_to_canonical,
    request_from_canonical,
    request_to_canonical,
)
from .openai_chat_stream import ChatDecoder as StreamDecoder
from .openai_chat_stream import ChatEncoder as StreamEncoder
from .openai_wire import (
    DONE,
    error_body,
    error_event,
    error_object,
    error_status,
    usage_of,
    watch,
    with_usage,
)

__all__ = [
    "API", "APPROXIMATES", "CARRIES", "DONE", "NAME", "NAMES", "ChatReply", "ChatRequest",
    "StreamDecoder", "StreamEncoder", "chunk", "completion", "decode_reply", "decode_request",
    "error_body", "error_event", "error_object", "error_status", "error_to_canonical", "event",
    "event_data", "last_user_text", "reply_from_canonical", "reply_to_canonical",
    "request_from_canonical", "request_to_canonical", "strip_routing_fields", "usage_chunk",
    "usage_of", "watch", "wire_usage", "with_model", "with_stream", "with_usage",
]  # fmt: skip

API = "chat/completions"


class _Message(Struct, gc=False):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | UnsetType | None = UNSET


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class ChatRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are OpenAI's documented ones or wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        said = self.metadata
        return self.prompt_cache_key or (None if said is None else user_id(said)) or self.user

    @property
    def usage_wanted(self) -> bool:
        """Whether the client's stream must show usage."""
        options = self.stream_options
        return options is not None and bool(options.include_usage)


_decode_request = msgspec.json.Decoder(ChatRequest).decode


def decode_request(body: bytes) -> ChatRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)


# -- replies ----------------------------------------------------------------------------------


class _WireUsage(Struct, gc=False):
    prompt_tokens: int = -1
    completion_tokens: int = -1


class _ReplyMessage(Struct, gc=False):
    content: str | None = None


class _ReplyChoice(Struct, gc=False):
    message: _ReplyMessage | None = None
    delta: _ReplyMessage | None = None
    finish_reason: str | None = None


class ChatReply(Struct, gc=False):
    """The typed part of a reply or of one stream event."""

    choices: list[_ReplyChoice] = []
    usage: _WireUsage | None = None
    model: str = ""

    def text(self) -> str:
        """The first choice's whole text, or its delta."""
        for choice in self.choices[:1]:
            said = choice.message or choice.delta
            return (said.content or "") if said else ""
        return ""

    def finish(self) -> str:
        """The first choice's finish reason, or ""."""
        return (self.choices[0].finish_reason or "") if self.choices else ""


_decode_reply = msgspec.json.Decoder(ChatReply).decode


def decode_reply(body: bytes) -> ChatReply:
    """Read a reply or one event's data; raises ``ValueError`` when it is not one."""
    return _decode_reply(body)


# -- stream events ----------------------------------------------------------------------------


def event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def chunk(
    reply_id: str, created: int, model: str, delta: dict[str, str], finish_reason: str | None = None
) -> dict[str, Any]:
    """One ``chat.completion.chunk``."""
    return {
        "id": reply_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def usage_chunk(reply_id: str, created: int, model: str, usage: Usage) -> dict[str, Any]:
    """The chunk ``include_usage`` asks for: no choices, only counts."""
    return {
        "id": reply_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [],
        "usage": wire_usage(usage),
    }


def wire_usage(usage: Usage) -> dict[str, int]:
    """Usage as replies spell it."""
    prompt, completion = max(usage.prompt, 0), max(usage.completion, 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(
    reply_id: str, created: int, model: str, text: str, usage: Usage, finish_reason: str = "stop"
) -> bytes:
    """A whole ``chat.completion``."""
    return orjson.dumps(
        {
            "id": reply_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
            ],
            "usage": wire_usage(usage),
        }
    )


def event_data(stream: bytes) -> Iterator[bytes]:
    """The ``data`` payloads of complete events; comments and other fields are skipped."""
    for block in stream.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].lstrip() for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def last_user_text(body: bytes) -> str:
    """The newest user message's text, for backends that only need the prompt."""
    for message in reversed(parse(body)["messages"]):
        content = message.get("content")
        if message.get("role") == "user":
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                texts = (p.get("text") for p in content if isinstance(p, dict))
                return "".join(text for text in texts if isinstance(text, str))
    return ""
