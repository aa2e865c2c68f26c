"""What every operation of the API shares: headers in and out, credentials, words.

Invariants: a header's rule here is the rule of the code that reads it; a test sends both sides.
"""

from __future__ import annotations

from typing import Any, Final

FAMILIES: Final = {
    "openai": "What OpenAI clients call.",
    "anthropic": "What Anthropic clients call.",
    "google": "What Gemini clients call.",
    "native": "Prompts answered at once or later, and what became of them.",
    "ops": "Health, metrics and this description.",
}

TITLES: Final = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "google": "Gemini",
    "native": "Native",
    "ops": "Operations",
}

INTRO: Final = """\
Errors come in the envelope of the route's family, naming the field at fault where there is one.
A request whose framing is malformed has no route yet: it gets OpenAI's envelope, and the connection closes.
`HEAD` is answered wherever `GET` is, and a method that a path does not have is `405` with `Allow`.
JSON bodies must say `content-type: application/json` and may not be compressed.
Paths are matched to the letter.
"""  # noqa: E501 - one sentence per line, as in every page


def _header(description: str, schema: dict[str, Any], *, always: bool = False) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


_WHOLE: Final = {"type": "integer", "minimum": 0}

HEADERS: Final[dict[str, Any]] = {
    "x-request-id": _header(
        "The client's request id, or one made here.", {"type": "string"}, always=True
    ),
    "request-id": _header("The same, where Anthropic's SDKs look for it.", {"type": "string"}),
    "x-tpo-call-id": _header("The call's own id.", {"type": "string"}),
    "x-tpo-shard": _header("The shard that served the call.", {"type": "integer", "minimum": -1}),
    "x-tpo-backend": _header("The backend that answered.", {"type": "string"}),
    "x-tpo-attempts": _header(
        "How often a backend was asked, where that is more than once.",
        {"type": "integer", "minimum": 2},
    ),
    "server-timing": _header("Milliseconds here and upstream.", {"type": "string"}),
    "retry-after": _header("Seconds to wait before another try.", _WHOLE),
    "retry-after-ms": _header("The same in milliseconds.", _WHOLE),
}
ANSWER_HEADERS: Final = ("x-request-id",)
CALL_HEADERS: Final = (
    "x-request-id", "x-tpo-call-id", "x-tpo-shard", "x-tpo-backend", "x-tpo-attempts",
    "server-timing",
)  # fmt: skip
ERROR_HEADERS: Final = ("x-request-id", "retry-after", "retry-after-ms")


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


PARAMETERS: Final[dict[str, Any]] = {
    found["name"]: found
    for found in (
        _parameter(
            "x-request-id",
            "An id of the client's own; comes back in the answer and goes upstream.",
            {"type": "string", "pattern": "^[!-~]{0,128}$"},
        ),
        _parameter(
            "x-session-id",
            "Calls of one session are served by one shard.",
            {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        ),
        _parameter(
            "x-tpo-priority",
            "Who is served first where calls wait.",
            {"type": "string", "enum": ["critical", "high", "normal", "low"]},
        ),
        _parameter(
            "x-tpo-deadline-ms",
            "Milliseconds after which no answer is wanted any more: `504`.",
            {"type": "integer", "minimum": 1, "maximum": 604_800_000},
        ),
        _parameter(
            "x-tpo-tags",
            "Words, separated by commas, by which the call is found in the audit.",
            {"type": "string", "pattern": "^[A-Za-z0-9._:/@, -]{0,1056}$"},
        ),
        _parameter(
            "idempotency-key",
            "Requests with one key run once: the others are given its answer.",
            {"type": "string", "pattern": "^[ -~]{1,255}$"},
        ),
        _parameter(
            "x-litellm-session-id",
            "The session, where `x-session-id` does not say it.",
            {"type": "string"},
        ),
        _parameter(
            "traceparent",
            "W3C trace context, passed on upstream; one that is malformed is ignored.",
            {"type": "string"},
        ),
        _parameter("tracestate", "Goes with `traceparent`.", {"type": "string"}),
    )
}

SECURITY: Final[dict[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of this gateway where it asks for keys; another credential goes "
        "upstream only where the operator's backend says so.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's SDKs send it.",
    },
}
