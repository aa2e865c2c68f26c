"""Errors an upstream reports, in whatever dialect, as our own.

Both families nest ``error.type`` and ``error.message``; OpenAI adds ``param`` and ``code``.
The upstream's raw body is not kept: only a client of the same dialect may see that, and whoever
passes it on knows which one it is.
"""

from __future__ import annotations

from typing import Any

import orjson

from tpo_mp.errors import (
    BackendFailure,
    BackendTimeout,
    InvalidRequest,
    RateLimited,
    Rejected,
    TpoError,
)

_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402,
    "permission_error": 403, "not_found_error": 404, "request_too_large": 413,
    "rate_limit_error": 429, "rate_limit_exceeded": 429, "insufficient_quota": 429,
    "requests": 429, "tokens": 429, "invalid_prompt": 400,
    "api_error": 500, "server_error": 500, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
_MAX_MESSAGE = 500


def bad_body(what: str) -> BackendFailure:
    """The upstream answered something that is not in its dialect."""
    return BackendFailure(f"upstream answered {what}", reason="bad_upstream_body")


def truncated() -> BackendFailure:
    """The upstream's stream stopped without its terminal event."""
    said = "upstream ended the stream before its end"
    return BackendFailure(said, reason="truncated_stream")


def upstream_error(body: bytes, status: int) -> TpoError:
    """An upstream's error body and status as our error."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    return of_object(found.get("error", found) if isinstance(found, dict) else found, status)


def of_object(found: Any, status: int = 0) -> TpoError:
    """An ``error`` object as our error; without a status its type or code tells."""
    said, kind, code, param = "", "", "", None
    if isinstance(found, dict):
        said, kind, code = (_words(found.get(key)) for key in ("message", "type", "code"))
        param = _words(found.get("param")) or None
    elif isinstance(found, str):
        said = found
    status = status or _STATUS.get(kind) or _STATUS.get(code) or _number(code) or 502
    said = "".join(c for c in said if c.isprintable())[:_MAX_MESSAGE]
    return _of_status(status, said or f"upstream answered {status}", code or kind, param)


def _of_status(status: int, said: str, slug: str, param: str | None) -> TpoError:
    if status == 429:
        return RateLimited(said, reason="upstream_rate_limited")
    if status == 400:
        return InvalidRequest(said, reason=slug[:64] or "upstream_rejected", param=param)
    if 400 <= status < 500 and status not in (408, 499):
        return Rejected(said, reason=slug[:64] or "upstream_rejected", param=param, status=status)
    if status in (408, 504):
        return BackendTimeout(said, reason="upstream_timeout")
    if status in (503, 529):
        return BackendFailure(said, reason="upstream_overloaded", status=503)
    return BackendFailure(said, reason="upstream_error")


def _words(value: object) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def _number(code: str) -> int:
    return int(code) if len(code) == 3 and code.isdigit() and "400" <= code <= "599" else 0
