"""Background responses: the object while it is unfinished, its end, and its stream under our name.

Whoever made the response, a client of the background call knows it by the id it was given first;
events are numbered anew, so that a number is a place to go on from.

Source: OpenAI API reference, responses, background mode.
Invariants: an id names its call and is spelt in one way; all but id, number and the background
mark of an event is as the backend said it.
"""

from __future__ import annotations

from typing import Any

import orjson

from tpo_mp.errors import BackendFailure, Cancelled, TpoError

from .openai_responses_request import ID
from .openai_wire import error_object

PATH = "/v1/responses"
UNFINISHED = ("queued", "in_progress")
FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")
_ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "previous_response_id", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools",
    "top_logprobs", "top_p", "truncation", "user",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "instructions": None, "metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto",
    "tools": [], "temperature": None, "top_p": None,
}  # fmt: skip


def response_id(call_id: str) -> str:
    """The id of a call's response."""
    return ID + call_id.replace("-", "")


def call_id_of(name: str) -> str | None:
    """The call of a response id; ``None`` when it is not one of ours."""
    digits = name.removeprefix(ID)
    if len(digits) != 32 or len(name) != len(ID) + 32:
        return None
    a, b, c, d = digits[:8], digits[8:12], digits[12:16], digits[16:20]
    return f"{a}-{b}-{c}-{d}-{digits[20:]}"


def accepted(body: bytes, name: str, created: int) -> dict[str, Any]:
    """The response object of a request that waits for its turn; its settings are echoed."""
    fields = orjson.loads(body)
    settings = {key: fields[key] for key in _ECHOED if fields.get(key) is not None}
    return {
        "id": name,
        "object": "response",
        "created_at": created,
        "status": "queued",
        "background": True,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **_DEFAULTS,
        **settings,
    }


def broken(response: dict[str, Any], error: TpoError) -> dict[str, Any]:
    """The response object of a call that ended with an error, or was cancelled."""
    if isinstance(error, Cancelled):
        return response | {"status": "cancelled"}
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    if 400 <= error.status < 500 and error.status != 429:
        code = "invalid_prompt"
    return response | {"status": "failed", "error": {"code": code, "message": error.message}}


def own_event(data: bytes, name: str, number: int) -> tuple[bytes, dict[str, Any] | None]:
    """One event of the backend's stream under our id and number.

    Answers it with the response object if it is the last event.  Raises ``BackendFailure``.
    """
    try:
        event = orjson.loads(data)
        kind = event["type"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        event, kind = None, None
    if not isinstance(event, dict) or not isinstance(kind, str) or not kind.isprintable():
        said = "upstream sent an event that is none"
        raise BackendFailure(said, reason="bad_upstream_body")
    event["sequence_number"] = number
    response = event.get("response")
    if isinstance(response, dict):
        event["response"] = response = response | {"id": name, "background": True}
        return event_of(event), response if kind in FINAL_EVENTS else None
    return event_of(event), None


def failed_event(response: dict[str, Any], error: TpoError, number: int) -> list[bytes]:
    """The events that end a stream whose call failed: what became of it, then the error itself."""
    said = {"type": "error", "code": error.reason, "message": error.message, "param": error.param}
    told = said | {"error": error_object(error)}
    if response["status"] != "failed":
        return [event_of(told | {"sequence_number": number})]
    failed = {"type": "response.failed", "sequence_number": number, "response": response}
    return [event_of(failed), event_of(told | {"sequence_number": number + 1})]


def event_of(event: dict[str, Any]) -> bytes:
    """One server-sent event, named after its type."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
