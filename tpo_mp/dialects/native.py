"""The native dialect: one prompt in, one record out.

A record is the same wherever it is read: in the answer of ``/v1/prompt``, and by id later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.errors import InvalidRequest, TpoError
from tpo_mp.types import Usage

from .body import check_json_size, split_path

T = TypeVar("T")

SAMPLING: Final[Mapping[str, object]] = {"max_tokens": 256, "temperature": 0.7}
"""What requests are told that do not say, unless the backend's kind has other words for it."""
MAX_KEY_BYTES = 128
MAX_VALUE_BYTES = 1024
_Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)]
_Value = Annotated[str, Meta(max_length=MAX_VALUE_BYTES)]


class PromptRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``/v1/prompt`` and ``/api/v1/infer``; ``prompt`` and ``input`` are one field."""

    prompt: Annotated[str, Meta(min_length=1)] | None = None
    input: Annotated[str, Meta(min_length=1)] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    session_id: Annotated[str, Meta(min_length=1, max_length=256)] | int | None = None
    metadata: Annotated[dict[_Key, _Value], Meta(max_length=50)] | None = None
    stream: bool | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    deadline_secs: Annotated[float, Meta(ge=1, le=604_800)] | None = None
    timeout_seconds: Annotated[float, Meta(ge=1, le=3600)] | None = None

    @property
    def session(self) -> str | None:
        """The session as text; ids we made may come back as numbers."""
        return None if self.session_id is None else str(self.session_id)


class BatchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``/api/v1/batch``: prompts that share everything else."""

    prompts: Annotated[list[Annotated[str, Meta(min_length=1)]],
                       Meta(min_length=1, max_length=10_000)]  # fmt: skip
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    session_id: Annotated[str, Meta(min_length=1, max_length=256)] | int | None = None
    max_concurrency: Annotated[int, Meta(ge=1, le=16)] = 4
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None

    @property
    def session(self) -> str | None:
        """The session as text; ids we made may come back as numbers."""
        return None if self.session_id is None else str(self.session_id)


class SocketMessage(PromptRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a WebSocket client says: a prompt, or that a running request is to end.

    ``client_request_id`` is the client's own name for a prompt, repeated in what comes of it.
    """

    type: Literal["infer", "prompt", "cancel"] = "infer"
    request_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    client_request_id: (
        Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[!-~]*$(?!\n)")] | None
    ) = None


class ResetRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which circuit breaker is to be closed; without a name every one."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


_decode = msgspec.json.Decoder(PromptRequest).decode
_decode_reset = msgspec.json.Decoder(ResetRequest).decode
_decode_batch = msgspec.json.Decoder(BatchRequest).decode

_decode_message = msgspec.json.Decoder(SocketMessage).decode
R = TypeVar("R", bound=PromptRequest)


def decode_batch(body: bytes) -> BatchRequest:
    """Check a batch's body; raises ``InvalidRequest`` (422) naming the field."""
    return strictly(_decode_batch, body)


def decode_reset(body: bytes) -> ResetRequest:
    """Check the body of a breakers' reset; raises ``InvalidRequest`` (422) naming the field."""
    return strictly(_decode_reset, body)


def decode_request(body: bytes) -> PromptRequest:
    """Check a body; raises ``InvalidRequest`` (422) naming the field."""
    return _prompted(strictly(_decode, body))


def decode_message(text: bytes) -> SocketMessage:
    """Check a WebSocket message; raises as ``decode_request`` does."""
    message = strictly(_decode_message, text)
    if message.type != "cancel":
        if message.request_id is not None:
            raise _invalid("request_id names a request to cancel", "request_id")
        return _prompted(message)
    if message.request_id is None:
        raise _invalid("request_id is required", "request_id")
    return message


def request_of(query: Mapping[str, str]) -> PromptRequest:
    """Query parameters as a request, which need not have a prompt; raises as the others do."""
    try:
        request = msgspec.convert(query, PromptRequest, strict=False)
    except msgspec.ValidationError as e:
        raise _misfit(e) from None
    return _prompted(request) if "prompt" in query or "input" in query else request


def _misfit(error: msgspec.ValidationError) -> InvalidRequest:
    message, param = split_path(str(error))
    if "unknown field" in message:
        param = message.rpartition(" `")[2].rstrip("`")
    return _invalid(message, param)


def _prompted(request: R) -> R:
    if request.prompt is None and request.input is None:
        raise _invalid("prompt is required", "prompt")
    if request.prompt is not None and request.input is not None and request.prompt != request.input:
        raise _invalid("prompt and input differ; send one of them", "input")
    if request.metadata:
        _check_metadata(request.metadata)
    return request


def strictly(decode: Callable[[bytes], T], body: bytes) -> T:
    """Read a native body; raises ``InvalidRequest``: 400 for what is no JSON, else 422."""
    check_json_size(body)
    try:
        return decode(body)
    except msgspec.ValidationError as e:
        raise _misfit(e) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", reason="INVALID_REQUEST") from None


def _check_metadata(metadata: dict[str, str]) -> None:
    """The limits are bytes; a schema can only count characters."""
    for key, value in metadata.items():
        if len(key.encode()) > MAX_KEY_BYTES:
            raise _invalid(f"a key is longer than {MAX_KEY_BYTES} bytes", "metadata")
        if len(value.encode()) > MAX_VALUE_BYTES:
            said = f"the value of {key!r} is longer than {MAX_VALUE_BYTES} bytes"
            raise _invalid(said, "metadata")


def _invalid(message: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(message, reason="VALIDATION_ERROR", param=param, status=422)


def to_chat(
    prompt: str, model: str, sampling: Mapping[str, object], *, stream: bool = False
) -> bytes:
    """The prompt as a chat request."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], **sampling}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(body)


def filled(
    body: bytes, told: Mapping[str, object], left: Iterable[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """A chat request that is told what it does not say, and the names of what it is told.

    ``left`` are what it was told for another backend: it is not any more.
    """
    fields = orjson.loads(body)
    for name in left:
        fields.pop(name, None)
    unsaid = tuple(name for name in told if name not in fields)
    for name in unsaid:
        fields[name] = told[name]
    return orjson.dumps(fields), unsaid


def record(
    request_id: str,
    session_id: str | None,
    status: str,
    *,
    result: str | None = None,
    error: dict[str, Any] | None = None,
    model: str = "",
    finish_reason: str | None = None,
    usage: Usage | None = None,
    latency_ms: float | None = None,
) -> dict[str, Any]:
    """One call as native clients see it; ``status``: processing, completed, failed, cancelled."""
    out: dict[str, Any] = {
        "request_id": request_id,
        "session_id": session_id,
        "status": status,
        "result": result,
        "error": error,
    }
    if status != "processing":
        out["model"] = model
        out["finish_reason"] = finish_reason
        out["usage"] = None if usage is None else _usage(usage)
        out["latency_ms"] = latency_ms
    return out


def _usage(usage: Usage) -> dict[str, int]:
    prompt, completion = max(usage.prompt, 0), max(usage.completion, 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error_status(error: TpoError) -> int:
    """A full queue is 429 here: its clients know ``server_busy`` by that."""
    return 429 if _queue_is_full(error) else error.status


def _queue_is_full(error: TpoError) -> bool:
    return error.code == "shed" and error.reason == "backpressure"


def error_object(error: TpoError, request_id: str) -> dict[str, Any]:
    """The native ``error`` object; OpenAI-shaped, so one client parser reads both."""
    fields = (
        [{"field": error.param, "code": error.reason, "message": error.message}]
        if error.param
        else []
    )
    return {
        "code": "server_busy" if _queue_is_full(error) else error.reason,
        "message": error.message,
        "type": error.code,
        "param": error.param,
        "details": {"fields": fields} if fields else None,
        "retry_after_ms": None if error.retry_after_s is None else round(error.retry_after_s * 1e3),
        "request_id": request_id,
    }


def error_body(error: TpoError, request_id: str) -> bytes:
    """A whole error response body."""
    return orjson.dumps({"error": error_object(error, request_id)})
