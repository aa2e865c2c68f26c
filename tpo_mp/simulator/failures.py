"""Refusals as each provider words and shapes them, for every status an order can name.

Source: OpenAI, Anthropic and Gemini API references, errors; the types and codes are theirs.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from tpo_mp.dialects import gemini_wire
from tpo_mp.errors import BackendFailure, OverBudget, RateLimited, Rejected, TpoError
from tpo_mp.types import Call

from .limits import Allowance, is_anthropic, is_google
from .orders import ErrorOrder


class _OpenAI(NamedTuple):
    kind: str
    code: str | None
    message: str


_INVALID: Final = "invalid_request_error"
_OPENAI: Final[dict[int, _OpenAI]] = {
    400: _OpenAI(_INVALID, None, "The request could not be understood."),
    401: _OpenAI(_INVALID, "invalid_api_key", "The API key provided is not a valid one."),
    403: _OpenAI("permission_error", "permission_denied", "This key may not use that model."),
    404: _OpenAI(_INVALID, "model_not_found", "The model {model!r} does not exist."),
    408: _OpenAI("timeout_error", "request_timeout", "The request took too long to arrive."),
    409: _OpenAI(_INVALID, "conflict", "Another request changed the resource."),
    413: _OpenAI(_INVALID, "request_too_large", "The request is larger than the limit."),
    422: _OpenAI(_INVALID, "unprocessable_entity", "The request cannot be carried out."),
    429: _OpenAI("requests", "rate_limit_exceeded",
                 "Rate limit reached for {model} on requests per minute: "
                 "limit {limit}, used {limit}, requested 1. Try again in {wait:g} s."),
    500: _OpenAI("server_error", None, "The server had an error while processing the request."),
    502: _OpenAI("server_error", "bad_gateway", "A server further on did not answer."),
    503: _OpenAI("server_error", "overloaded", "The engine is overloaded; try again later."),
    504: _OpenAI("server_error", "gateway_timeout", "A server further on took too long."),
    529: _OpenAI("server_error", "overloaded", "The engine is overloaded; try again later."),
}  # fmt: skip
_QUOTA: Final = _OpenAI(
    "insufficient_quota", "insufficient_quota", "The account's quota is used up."
)
_ANTHROPIC: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "The request could not be understood."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "This key may not use the resource."),
    404: ("not_found_error", "model: {model}"),
    408: ("timeout_error", "The request took too long to arrive."),
    409: ("invalid_request_error", "Another request changed the resource."),
    413: ("request_too_large", "The request is larger than the limit."),
    422: ("invalid_request_error", "The request cannot be carried out."),
    429: ("rate_limit_error", "This request would exceed the limit of {limit} requests a minute."),
    500: ("api_error", "Internal server error"),
    502: ("api_error", "A server further on did not answer."),
    503: ("overloaded_error", "Overloaded"),
    504: ("timeout_error", "The request took too long to process."),
    529: ("overloaded_error", "Overloaded"),
}
_GOOGLE_STATUS: Final = {408: 504, 413: 400, 422: 400, 502: 503, 529: 503}
"""Statuses that Google does not answer with, and what it says instead."""
_GOOGLE: Final = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "The caller does not have permission.",
    404: "models/{model} is not found for API version v1beta.",
    408: "Deadline expired before operation could complete.",
    409: "The operation was aborted.",
    413: "Request payload size exceeds the limit.",
    422: "Request contains an invalid argument.",
    429: "Resource has been exhausted: limit of {limit} requests a minute.",
    500: "An internal error has occurred.",
    502: "The service is currently unavailable.",
    503: "The model is overloaded. Please try again later.",
    504: "Deadline expired before operation could complete.",
    529: "The model is overloaded. Please try again later.",
}
RETRY_AFTER_S: Final = 1.0
"""How long a limited client is told to wait, when the order does not say."""


def refusal(order: ErrorOrder, call: Call, allowance: Allowance) -> TpoError:
    """The error an order asks for, with the body and headers of the call's dialect."""
    status, wait = order.status, order.retry_after_s
    if wait is None and status in (429, 503, 529) and not order.quota:
        wait = RETRY_AFTER_S
    words: dict[str, Any] = {"model": call.model, "limit": allowance.requests, "wait": wait or 0}
    if is_anthropic(call.dialect):
        kind, form = _ANTHROPIC[status]
        message = form.format(**words)
        told: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
        told["request_id"] = call.client_request_id or call.id
        code = kind
    elif is_google(call.dialect):
        status, message = _GOOGLE_STATUS.get(status, status), _google_words(order, words)
        told = {"error": gemini_wire.status_of(status, message, wait_s=wait)}
        code = str(told["error"]["status"]).lower()
    else:
        shape = _QUOTA if order.quota else _OPENAI[status]
        message = shape.message.format(**words)
        param = "model" if status == 404 else None
        told = {"error": {"message": message, "type": shape.kind, "param": param,
                          "code": shape.code}}  # fmt: skip
        code = shape.code or shape.kind
    kind_of_error = _kind(order)
    return kind_of_error(
        message,
        reason=code,
        retry_after_s=wait,
        status=status,
        body=orjson.dumps(told),
        lines=allowance.lines(call.dialect, 0, 0, 0.0, spent=kind_of_error is RateLimited),
    )


def _google_words(order: ErrorOrder, words: dict[str, Any]) -> str:
    if order.quota:
        return "You exceeded your current quota."
    return _GOOGLE.get(order.status, _GOOGLE[500]).format(**words)


def _kind(order: ErrorOrder) -> type[TpoError]:
    """Whether the gateway may try again, and what clients are told about that."""
    if order.quota:
        return OverBudget
    if order.status == 429:
        return RateLimited
    return Rejected if order.status < 500 else BackendFailure
