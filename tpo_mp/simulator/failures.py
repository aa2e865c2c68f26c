"""Refusals as each provider words and shapes them, for every status and name an order can give.

Source: OpenAI, Anthropic and Gemini API references, errors; the types and codes are theirs.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tpo_mp.dialects import gemini_wire
from tpo_mp.errors import BackendFailure, OverBudget, RateLimited, Rejected, TpoError
from tpo_mp.types import Call

from .error_kinds import KINDS, ErrorKind, OpenAIShape
from .limits import Allowance, is_anthropic, is_google
from .orders import ErrorOrder

_INVALID: Final = "invalid_request_error"
_OPENAI: Final[dict[int, OpenAIShape]] = {
    400: OpenAIShape(_INVALID, None, "The request could not be understood."),
    401: OpenAIShape(_INVALID, "invalid_api_key", "The API key provided is not a valid one."),
    403: OpenAIShape("permission_error", "permission_denied", "This key may not use that model."),
    404: OpenAIShape(_INVALID, "model_not_found", "The model {model!r} does not exist.", "model"),
    408: OpenAIShape("timeout_error", "request_timeout", "The request took too long to arrive."),
    409: OpenAIShape(_INVALID, "conflict", "Another request changed the resource."),
    413: OpenAIShape(_INVALID, "request_too_large", "The request is larger than the limit."),
    422: OpenAIShape(_INVALID, "unprocessable_entity", "The request cannot be carried out."),
    429: OpenAIShape("requests", "rate_limit_exceeded",
                     "Rate limit reached for {model} on requests per minute: "
                     "limit {limit}, used {limit}, requested 1. Try again in {wait:g} s."),
    500: OpenAIShape("server_error", None, "The server had an error while processing the request."),
    502: OpenAIShape("server_error", "bad_gateway", "A server further on did not answer."),
    503: OpenAIShape("server_error", "overloaded", "The engine is overloaded; try again later."),
    504: OpenAIShape("server_error", "gateway_timeout", "A server further on took too long."),
    529: OpenAIShape("server_error", "overloaded", "The engine is overloaded; try again later."),
}  # fmt: skip
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
"""How long a client limited by a bare status is told to wait, when the order does not say."""
CONTEXT: Final = 128_000
OUTPUT: Final = 16_384
"""What messages about lengths name as the model's: no model's own figures."""


def refusal(order: ErrorOrder, call: Call, allowance: Allowance) -> TpoError:
    """The error an order asks for, with the body and headers of the call's dialect."""
    tokens = order.tokens
    kind = KINDS.get(order.name) or _of_status(order.status)
    status = kind.status
    wait = kind.wait_s if order.retry_after_s is None else order.retry_after_s
    words: dict[str, Any] = {
        "model": call.model,
        "limit": allowance.requests,
        "token_limit": allowance.tokens,
        "wait": wait or 0,
        "context": CONTEXT if not tokens or tokens > CONTEXT else tokens - 1,
        "tokens": tokens or CONTEXT + 1,
        "output": OUTPUT,
    }
    if is_anthropic(call.dialect):
        code, form = kind.anthropic
        message, param = form.format(**words), None
        told: dict[str, Any] = {"type": "error", "error": {"type": code, "message": message}}
        told["request_id"] = call.client_request_id or call.id
    elif is_google(call.dialect):
        status, param = _GOOGLE_STATUS.get(status, status), None
        message = _google(order, kind, words)
        told = {"error": gemini_wire.status_of(status, message, wait_s=wait)}
        code = str(told["error"]["status"]).lower()
    else:
        shape = kind.openai
        message, param = shape.message.format(**words), shape.param
        told = {"error": {"message": message, "type": shape.kind, "param": param,
                          "code": shape.code}}  # fmt: skip
        code = shape.code or shape.kind
    kind_of_error = _class_of(kind)
    return kind_of_error(
        message,
        reason=code,
        param=param,
        retry_after_s=wait,
        status=status,
        body=orjson.dumps(told),
        lines=allowance.lines(call.dialect, 0, 0, 0.0, spent=kind_of_error is RateLimited),
    )


def _google(order: ErrorOrder, kind: ErrorKind, words: dict[str, Any]) -> str:
    """Google's own words; where it has none, those of another."""
    if order.quota:
        return "You exceeded your current quota."
    if order.name:
        return kind.anthropic[1].format(**words)
    return _GOOGLE[order.status].format(**words)


def _of_status(status: int) -> ErrorKind:
    wait = RETRY_AFTER_S if status in (429, 503, 529) else None
    return ErrorKind(status, wait, _OPENAI[status], _ANTHROPIC[status])


def _class_of(kind: ErrorKind) -> type[TpoError]:
    """Whether the gateway may try again, and what clients are told about that."""
    if kind.quota:
        return OverBudget
    if kind.status == 429:
        return RateLimited
    return Rejected if kind.status < 500 else BackendFailure
