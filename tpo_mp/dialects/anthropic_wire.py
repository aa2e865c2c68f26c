"""What Anthropic's messages and legacy completions share on the wire: events and errors.

Source: Anthropic API reference, errors; an overloaded service is 529 there, not 503.
"""

from __future__ import annotations

from typing import Any

import orjson

from tpo_mp.errors import TpoError

_TYPES = {
    401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 408: "timeout_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip


def named_event(name: bytes, wire: dict[str, Any]) -> bytes:
    """One event with its name."""
    return b"event: %b\ndata: %b\n\n" % (name, orjson.dumps(wire))


def error_status(error: TpoError) -> int:
    """The HTTP status of an error."""
    return 529 if error.status == 503 else error.status


def error_object(error: TpoError, request_id: str = "") -> dict[str, Any]:
    """The whole error envelope."""
    kind = "api_error" if error.status >= 500 else "invalid_request_error"
    message = error.message
    if error.param and error.param not in message:
        message = f"{error.param}: {message}"
    told: dict[str, Any] = {"type": _TYPES.get(error.status, kind), "message": message}
    if error.param == "thread" and error.reason == "unsupported_translation":
        # Their SDK's tool runners ask the server to hold the conversation; this makes them go on
        # without, sending it whole every time.
        told["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    out: dict[str, Any] = {"type": "error", "error": told}
    if request_id:
        out["request_id"] = request_id
    return out


def error_body(error: TpoError, request_id: str = "") -> bytes:
    """A whole error response body; an upstream's own body is passed as it came."""
    if error.body is not None:
        return error.body
    return orjson.dumps(error_object(error, request_id))


def error_event(error: TpoError) -> bytes:
    """The in-band event that makes SDKs raise, instead of a stream that just stops."""
    return named_event(b"error", error_object(error))
