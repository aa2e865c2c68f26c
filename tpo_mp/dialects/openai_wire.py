"""What OpenAI's chat and legacy completions share on the wire: usage, finish reasons, events."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.errors import TpoError
from tpo_mp.types import Usage

from .body import Count, Fields, parse, with_fields
from .canonical import StopReason, TokenUsage
from .watch import StreamWatch, TailWatch

DONE = b"data: [DONE]\n\n"

STOP_OF_FINISH: dict[str, StopReason] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "content_filter",
    "abort": "abort",
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
    "abort": "abort",
}


class PromptDetails(Struct, gc=False):
    """Where prompt tokens came from."""

    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class CompletionDetails(Struct, gc=False):
    """Where completion tokens went."""

    reasoning_tokens: Count | None = None


class TokenCounts(Struct, gc=False):
    """``usage`` of a reply or chunk."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
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


def with_usage(body: bytes, request_has_options: bool) -> bytes:
    """The body asking for a final usage chunk."""
    if request_has_options:
        options = parse(body).get("stream_options") or {}
        return with_fields(body, stream_options={**options, "include_usage": True})
    end = body.rstrip()
    return end[:-1] + b',"stream_options":{"include_usage":true}}'


class _Details(Struct, gc=False):
    cached_tokens: Count | None = None


class _Counts(Struct, gc=False):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None


class _Head(Struct, gc=False):
    usage: _Counts | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


def usage_of(body: bytes) -> Usage | None:
    """Token counts of a whole reply; raises ``ValueError`` when the body is not a JSON object."""
    usage = _decode_head(body).usage
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    details = usage.prompt_tokens_details
    return Usage(
        -1 if prompt is None else prompt,
        -1 if completion is None else completion,
        0 if details is None else details.cached_tokens or 0,
    )


# -- the passed-through stream --------------------------------------------------------------------

_MARKS = (
    b"[DONE]", b'"usage":{', b'"usage": {', b'"finish_reason":"', b'"finish_reason": "', b'"error":'
)  # fmt: skip


class _SeenChoice(Struct):
    finish_reason: str | None = None


class _Seen(Struct):
    choices: list[_SeenChoice] | None = None
    usage: TokenCounts | None = None
    error: Any = None


_decode_seen = msgspec.json.Decoder(_Seen).decode


def watch() -> TailWatch:
    """A tap; the stream must end with ``data: [DONE]``."""
    return TailWatch(_MARKS, _look)


def _look(seen: StreamWatch, _name: bytes, data: bytes) -> None:
    if data == b"[DONE]":
        seen.ended = True
        return
    try:
        chunk = _decode_seen(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if chunk.error:
        seen.failed = True
    if chunk.usage is not None:
        counts = chunk.usage
        prompt, completion = counts.prompt_tokens, counts.completion_tokens
        details = counts.prompt_tokens_details
        seen.usage = Usage(
            -1 if prompt is None else prompt,
            -1 if completion is None else completion,
            0 if details is None else details.cached_tokens or 0,
        )
    for choice in chunk.choices or ():
        seen.finish_reason = choice.finish_reason or seen.finish_reason


# -- errors -----------------------------------------------------------------------------------

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


def error_object(error: TpoError) -> dict[str, Any]:
    """The ``error`` object of a body or an in-band stream event."""
    kind = _TYPES.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {
        "message": error.message,
        "type": "insufficient_quota" if error.code == "over_budget" else kind,
        "param": error.param,
        "code": error.reason,
    }


def error_body(error: TpoError, request_id: str = "") -> bytes:  # noqa: ARG001
    """A whole error response body; an upstream's own body is passed as it came."""
    if error.body is not None:
        return error.body
    return orjson.dumps({"error": error_object(error)})


def error_event(error: TpoError) -> bytes:
    """The in-band event that makes SDKs raise, instead of a stream that just stops."""
    return data_event({"error": error_object(error)})


def error_status(error: TpoError) -> int:
    """The HTTP status of an error."""
    return error.status
