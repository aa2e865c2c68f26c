"""Gemini's words for why, how many and what went wrong; its schemas as JSON Schema.

Source: Gemini API reference (``v1beta``), ``google.rpc.Status`` and its error details.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tpo_mp.errors import RateLimited, TpoError

from .canonical import StopReason, TokenUsage

FINISH: Final[dict[StopReason, str]] = {
    "end": "STOP", "stop_sequence": "STOP", "tool_use": "STOP", "pause": "STOP",
    "length": "MAX_TOKENS", "context": "MAX_TOKENS",
    "refusal": "SAFETY", "content_filter": "SAFETY", "abort": "OTHER",
}  # fmt: skip
STATUSES: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "UNIMPLEMENTED", 408: "DEADLINE_EXCEEDED", 409: "ABORTED", 413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL",
    501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}  # fmt: skip
_DETAIL: Final = "type.googleapis.com/google.rpc."
_MOST_DEPTH: Final = 64


def usage_out(usage: TokenUsage) -> dict[str, Any]:
    """``usageMetadata``: thoughts are counted apart from the candidates."""
    said = max(usage.completion - usage.reasoning, 0)
    out: dict[str, Any] = {"promptTokenCount": usage.prompt}
    if said:
        out["candidatesTokenCount"] = said
    out["totalTokenCount"] = usage.prompt + usage.completion
    if usage.cached:
        out["cachedContentTokenCount"] = usage.cached
    out["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": usage.prompt}]
    if usage.reasoning:
        out["thoughtsTokenCount"] = usage.reasoning
    return out


# -- errors -----------------------------------------------------------------------------------


def error_status(error: TpoError) -> int:
    """The status a client sees; Google has no 529."""
    return 503 if error.status == 529 else error.status


def error_body(error: TpoError, request_id: str = "") -> bytes:  # noqa: ARG001 - as every codec's
    """A ``google.rpc.Status``; the field at fault is in its details."""
    return error.body or orjson.dumps({"error": error_object(error)})


def error_event(error: TpoError) -> bytes:
    """The error as an event of a stream."""
    return event({"error": error_object(error)})


def error_object(error: TpoError) -> dict[str, Any]:
    """The ``error`` of a body."""
    field = error.param if error.status == 400 else None
    wait = error.retry_after_s if isinstance(error, RateLimited) else None
    return status_of(error_status(error), error.message, field=field, wait_s=wait)


def status_of(
    code: int, message: str, *, field: str | None = None, wait_s: float | None = None
) -> dict[str, Any]:
    """A status with its details; ``wait_s`` is when to come back."""
    out: dict[str, Any] = {"code": code, "message": message,
                           "status": STATUSES.get(code, "UNKNOWN")}  # fmt: skip
    if field:
        violation = {"field": field, "description": message}
        detail: dict[str, Any] = {"@type": f"{_DETAIL}BadRequest", "fieldViolations": [violation]}
        out["details"] = [detail]
    elif wait_s is not None:
        out["details"] = [{"@type": f"{_DETAIL}RetryInfo", "retryDelay": f"{wait_s:g}s"}]
    return out


def event(value: dict[str, Any]) -> bytes:
    """One event; Google ends its lines in CRLF."""
    return b"data: %b\r\n\r\n" % orjson.dumps(value)


# -- schemas ----------------------------------------------------------------------------------


def json_schema(schema: Any, depth: int = 0) -> Any:
    """A schema of Google's (``OBJECT``, ``nullable``, counts as strings) as JSON Schema."""
    if not isinstance(schema, dict) or depth > _MOST_DEPTH:
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            out[key] = value.lower()
        elif key == "properties" and isinstance(value, dict):
            out[key] = {name: json_schema(inner, depth + 1) for name, inner in value.items()}
        elif key == "items":
            out[key] = json_schema(value, depth + 1)
        elif key in ("anyOf", "any_of") and isinstance(value, list):
            out["anyOf"] = [json_schema(inner, depth + 1) for inner in value]
        elif key in _COUNTS:
            whole = isinstance(value, str) and value.isdecimal() and len(value) < 10
            out[_COUNTS[key]] = int(value) if whole else value
        elif key == "format" and value in ("enum", "float", "double", "int32", "int64"):
            continue  # says nothing that the type does not
        elif key not in ("propertyOrdering", "property_ordering"):
            out[key] = value
    if out.pop("nullable", False) is True and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


_COUNTS: Final = {
    "minItems": "minItems", "min_items": "minItems", "maxItems": "maxItems",
    "max_items": "maxItems", "minLength": "minLength", "min_length": "minLength",
    "maxLength": "maxLength", "max_length": "maxLength",
    "minProperties": "minProperties", "maxProperties": "maxProperties",
}  # fmt: skip
