"""Errors by name: what each is called, its status, its body at each provider, and its wait.

An order or a rule names one (``rate_limit_tpm``) where a bare status would say too little.

Types, codes and parameters are the providers' own; waits are those a simulated client is told
when neither order nor rule says another.

Source: OpenAI and Anthropic API references, errors.
Known weakness: ``insufficient_quota`` is the 429 that OpenAI really sends, not a 403.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class OpenAIShape(NamedTuple):
    """``error`` of an OpenAI body; ``message`` is a template."""

    kind: str
    code: str | None
    message: str
    param: str | None = None


class ErrorKind(NamedTuple):
    """One named error; ``anthropic`` is type and message, both messages are templates.

    ``quota`` says that waiting is no use to an SDK.
    """

    status: int
    wait_s: float | None
    openai: OpenAIShape
    anthropic: tuple[str, str]
    quota: bool = False


QUOTA: Final = "insufficient_quota"
RATE_S: Final = 60.0
QUOTA_S: Final = 3_600.0
DAY_S: Final = 86_400.0
MONTH_S: Final = 2_592_000.0
SERVER_S: Final = 5.0
TIMEOUT_S: Final = 10.0

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"


def _rate(what: str, said: str, wait_s: float = RATE_S) -> ErrorKind:
    """A limit that passes: OpenAI's type says which, Anthropic's is always the same."""
    openai = OpenAIShape(what, "rate_limit_exceeded", f"Rate limit reached for {{model}} on {said}")
    return ErrorKind(429, wait_s, openai, ("rate_limit_error", f"Over the limit of {said}"))


def _bad(
    code: str | None, param: str | None, openai: str, anthropic: str, status: int = 400
) -> ErrorKind:
    return ErrorKind(
        status, None, OpenAIShape(_INVALID, code, openai, param), (_INVALID, anthropic)
    )


def _down(status: int, code: str, said: str, kind: str, wait_s: float = SERVER_S) -> ErrorKind:
    return ErrorKind(status, wait_s, OpenAIShape(_SERVER, code, said), (kind, said))


def _spent(span: str, wait_s: float) -> ErrorKind:
    said = f"The quota of this {span} is used up; it is filled again in {{wait:g}} s."
    openai = OpenAIShape("insufficient_quota", "quota_exceeded", said)
    return ErrorKind(429, wait_s, openai, ("rate_limit_error", said))


KINDS: Final[dict[str, ErrorKind]] = {
    "bad_request": _bad(
        None, None, "The request could not be understood.", "The request could not be understood."
    ),
    "invalid_parameter": _bad(
        "invalid_value", "temperature",
        "Invalid value for 'temperature'.",
        "temperature: the value is out of range",
    ),
    "missing_parameter": _bad(
        "missing_required_parameter", "messages",
        "Missing required parameter: 'messages'.",
        "messages: Field required",
    ),
    "context_length_exceeded": _bad(
        "context_length_exceeded", "messages",
        "The maximum context length of {model} is {context} tokens, but the messages have "
        "{tokens}. Shorten them.",
        "prompt is too long: {tokens} tokens > {context} maximum",
    ),
    "token_limit_exceeded": _bad(
        "invalid_value", "max_tokens",
        "max_tokens is too large: {model} supports at most {output} completion tokens.",
        "max_tokens: more than {output}, the most that {model} writes",
    ),
    "content_filter_triggered": _bad(
        "content_policy_violation", None,
        "The request was rejected by the safety system.",
        "Output blocked by content filtering policy",
    ),
    "invalid_model": _bad(None, "model", "invalid model ID", "model: {model} is no model"),
    "invalid_format": _bad(
        None, None,
        "The JSON body of the request could not be parsed.",
        "The request body is not valid JSON",
    ),
    "authentication_failed": ErrorKind(
        401, None,
        OpenAIShape(_INVALID, None, "No API key was provided that could be accepted."),
        ("authentication_error", "Invalid authentication credentials"),
    ),
    "invalid_api_key": ErrorKind(
        401, None,
        OpenAIShape(_INVALID, "invalid_api_key", "The API key provided is not a valid one."),
        ("authentication_error", "invalid x-api-key"),
    ),
    "permission_denied": ErrorKind(
        403, None,
        OpenAIShape("permission_error", "permission_denied", "This key may not use that model."),
        ("permission_error", "This key may not use the resource."),
    ),
    QUOTA: ErrorKind(
        429, None,
        OpenAIShape(QUOTA, QUOTA, "The account's quota is used up."),
        ("rate_limit_error", "The account's quota is used up."),
        quota=True,
    ),
    "request_timeout": ErrorKind(
        408, TIMEOUT_S,
        OpenAIShape("timeout_error", "request_timeout", "The request took too long to arrive."),
        ("timeout_error", "The request took too long to arrive."),
    ),
    "rate_limit": _rate("requests", "requests per minute: limit {limit}. Try again in {wait:g} s."),
    "rate_limit_rpm": _rate(
        "requests", "requests per minute (RPM): limit {limit}. Try again in {wait:g} s."
    ),
    "rate_limit_tpm": _rate(
        "tokens", "tokens per minute (TPM): limit {token_limit}. Try again in {wait:g} s."
    ),
    "rate_limit_concurrent": _rate(
        "requests", "concurrent requests. Try again in {wait:g} s."
    ),
    "quota_exceeded": _spent("hour", QUOTA_S),
    "daily_quota_exceeded": _spent("day", DAY_S),
    "monthly_quota_exceeded": _spent("month", MONTH_S),
    "internal_server_error": ErrorKind(
        500, SERVER_S,
        OpenAIShape(_SERVER, None, "The server had an error while processing the request."),
        ("api_error", "Internal server error"),
    ),
    "bad_gateway": _down(502, "bad_gateway", "A server further on did not answer.", "api_error"),
    "service_unavailable": _down(
        503, "service_unavailable", "The service is unavailable; try again later.",
        "overloaded_error",
    ),
    "circuit_breaker_open": _down(
        503, "circuit_breaker_open", "The circuit breaker is open; try again later.",
        "overloaded_error",
    ),
    "engine_sleeping": _down(
        503, "engine_sleeping", "The model {model} is asleep; POST /wake_up wakes it.",
        "overloaded_error",
    ),
    "gateway_timeout": _down(
        504, "gateway_timeout", "A server further on took too long.", "timeout_error", TIMEOUT_S
    ),
    "upstream_timeout": _down(
        504, "upstream_timeout", "The model took too long to answer.", "timeout_error", TIMEOUT_S
    ),
    "overloaded": _down(529, "overloaded", "Overloaded", "overloaded_error"),
}  # fmt: skip

AS_FAULTS: Final[dict[str, str]] = {
    "connection_error": "refuse",
    "dns_resolution_failed": "refuse",
    "ssl_handshake_failed": "refuse",
    "slow_response": "slow",
    "partial_response": "truncate",
}
"""Names of errors that no status says; each is a fault.

A server that is reached can fake neither a name that does not resolve nor a failed handshake: all
it can do is break the connection, which is what a client sees of both.
"""
