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

from tpo_mp.errors import InvalidRequest, TpoError
from tpo_mp.types import Usage

MAX_BRACKETS = 20_000
"""More `{` and `[` than this is not a chat request but an attack on the parser."""

_STRIPPED = (
    "api_base", "base_url", "api_key", "api_version", "extra_headers", "mock_response",
    "organization", "timeout",
)  # fmt: skip
_Finite = float


class _Message(Struct, gc=False):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | UnsetType | None = UNSET


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class ChatRequest(Struct, gc=False):
    """The typed part of a request; bounds are OpenAI's documented ones or wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[_Finite, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[_Finite, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    api_base: Any = UNSET
    base_url: Any = UNSET
    api_key: Any = UNSET
    api_version: Any = UNSET
    extra_headers: Any = UNSET
    mock_response: Any = UNSET
    organization: Any = UNSET
    timeout: Any = UNSET
    metadata: Any = None

    def has_routing_fields(self) -> bool:
        """Whether the client tried to steer the upstream from its body."""
        return not (
            self.api_base is UNSET and self.base_url is UNSET and self.api_key is UNSET
            and self.api_version is UNSET and self.extra_headers is UNSET
            and self.mock_response is UNSET and self.organization is UNSET
            and self.timeout is UNSET
        )  # fmt: skip


_decode_request = msgspec.json.Decoder(ChatRequest).decode


def decode_request(body: bytes) -> ChatRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    check_json_size(body)
    try:
        return _decode_request(body)
    except msgspec.ValidationError as e:
        message, param = split_path(str(e))
        raise InvalidRequest(message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", reason="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", reason="invalid_json") from None


def check_json_size(body: bytes) -> None:
    """Refuse bodies whose only purpose is to keep a JSON parser busy."""
    if len(body) > MAX_BRACKETS and body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
        raise InvalidRequest("the body has too many JSON values", reason="invalid_json")


def split_path(message: str) -> tuple[str, str | None]:
    """Split msgspec's ``Expected … - at `$.a[0].b` `` into words and field path."""
    words, _, path = message.partition(" - at `$")
    if path:
        return f"{words} at {path.rstrip('`').lstrip('.')}", path.rstrip("`").lstrip(".")
    if words.startswith("Object missing required field `"):
        field = words.rpartition(" `")[2].rstrip("`")
        return words, field
    return words, None


def _fields(body: bytes) -> dict[str, Any]:
    """The whole body as a dict; the typed decoder skips what this must still read."""
    try:
        fields: dict[str, Any] = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", reason="invalid_json") from None
    return fields


def strip_routing_fields(body: bytes) -> bytes:
    """The body without the fields of ``_STRIPPED``."""
    fields = _fields(body)
    for name in _STRIPPED:
        fields.pop(name, None)
    return orjson.dumps(fields)


def with_model(body: bytes, model: str) -> bytes:
    """The body asking for another model name."""
    fields = _fields(body)
    fields["model"] = model
    return orjson.dumps(fields)


def with_usage(body: bytes, request_has_options: bool) -> bytes:
    """The body asking for a final usage chunk."""
    if request_has_options:
        fields = _fields(body)
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(fields)
    end = body.rstrip()
    return end[:-1] + b',"stream_options":{"include_usage":true}}'


# -- replies ----------------------------------------------------------------------------------


class _WireUsage(Struct, gc=False):
    prompt_tokens: int = -1
    completion_tokens: int = -1


class _Head(Struct, gc=False):
    usage: _WireUsage | None = None


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


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_reply = msgspec.json.Decoder(ChatReply).decode


def usage_of(body: bytes) -> Usage | None:
    """Token counts of a whole reply; raises ``ValueError`` when the body is not a JSON object."""
    usage = _decode_head(body).usage
    return None if usage is None else Usage(usage.prompt_tokens, usage.completion_tokens)


def decode_reply(body: bytes) -> ChatReply:
    """Read a reply or one event's data; raises ``ValueError`` when it is not one."""
    return _decode_reply(body)


# -- stream events ----------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"


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


# -- errors -----------------------------------------------------------------------------------

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


def error_object(error: TpoError) -> dict[str, Any]:
    """The ``error`` object of a body or an in-band stream event."""
    return {
        "message": error.message,
        "type": _TYPES.get(
            error.status, "server_error" if error.status >= 500 else "invalid_request_error"
        ),
        "param": error.param,
        "code": error.reason,
    }


def error_body(error: TpoError) -> bytes:
    """A whole error response body; an upstream's own body is passed as it came."""
    if error.body is not None:
        return error.body
    return orjson.dumps({"error": error_object(error)})


def error_event(error: TpoError) -> bytes:
    """The in-band event that makes SDKs raise, instead of a stream that just stops."""
    return event({"error": error_object(error)})


def last_user_text(body: bytes) -> str:
    """The newest user message's text, for backends that only need the prompt."""
    for message in reversed(_fields(body)["messages"]):
        content = message.get("content")
        if message.get("role") == "user":
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                return "".join(p.get("text") or "" for p in content if isinstance(p, dict))
    return ""
