"""Background responses on the wire: names, states, and a backend's events under our own name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialects import PLAIN, body, datas
from tpo_mp.dialects import openai_responses_background as dialect
from tpo_mp.errors import BackendFailure, Cancelled, InvalidRequest, RateLimited, TpoError
from tpo_mp.shm.callid import CallIds


def test_name_and_call_name_each_other() -> None:
    """Whatever a client sends instead names no call, or one nobody has."""
    call_id = CallIds(3, 7).new()
    name = dialect.response_id(call_id)
    assert dialect.call_id_of(name) == call_id
    for other in ("", "resp_", "resp_7", name[:-1], name + "0", name.removeprefix("resp_")):
        assert dialect.call_id_of(other) is None
    assert CallIds.parse(dialect.call_id_of("resp_" + "zz" * 16) or "") is None


def test_accepted_response_echoes_its_settings() -> None:
    """As OpenAI does; what was not said has its default."""
    asked = PLAIN["openai_responses"] | {"metadata": {"a": "b"}, "tools": [{"type": "x"}]}
    shown = dialect.accepted(body(asked, background=True), "resp_1", 5)
    assert (shown["id"], shown["status"], shown["background"]) == ("resp_1", "queued", True)
    assert (shown["model"], shown["metadata"], shown["tools"]) == ("m", {"a": "b"}, [{"type": "x"}])
    assert (shown["tool_choice"], shown["output"], shown["usage"]) == ("auto", [], None)
    assert "input" not in shown


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackendFailure("broke"), "failed", "server_error"),
        (RateLimited("later"), "failed", "rate_limit_exceeded"),
        (InvalidRequest("no"), "failed", "invalid_prompt"),
        (Cancelled("left"), "cancelled", None),
    ],
)
def test_end_without_an_answer(error: TpoError, status: str, code: str | None) -> None:
    """State, code and words; a cancelled response has no error."""
    shown = dialect.broken({"id": "resp_1", "error": None}, error)
    assert shown["status"] == status
    assert (shown["error"] or {}).get("code") == code
    told = datas(b"".join(dialect.failed_event(shown, error, 7)))
    assert [event["sequence_number"] for event in told] == list(range(7, 7 + len(told)))
    assert told[-1]["type"] == "error"
    assert told[-1]["message"] == error.message
    assert [e["response"] for e in told[:-1]] == ([shown] if status == "failed" else [])


def test_event_passes_under_our_name_and_number() -> None:
    """All else stays, unknown fields too; only a last event answers the response."""
    said: dict[str, Any] = {"type": "response.output_text.delta", "delta": "é", "x": [1]}
    event, last = dialect.own_event(json.dumps(said).encode(), "resp_1", 4)
    assert datas(event) == [said | {"sequence_number": 4}]
    assert event.startswith(b"event: response.output_text.delta\n")
    assert last is None
    for kind in ("response.created", *dialect.FINAL_EVENTS):
        said = {"type": kind, "response": {"id": "resp_x", "y": None}}
        event, last = dialect.own_event(json.dumps(said).encode(), "resp_1", 0)
        shown = {"id": "resp_1", "y": None, "background": True}
        assert datas(event)[0]["response"] == shown
        assert last == (shown if kind in dialect.FINAL_EVENTS else None)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"7", b'{"type":1}', b'{"type":"a\\nb"}', b"\xff"]
)
def test_what_is_no_event_is_a_failure(data: bytes) -> None:
    """Whatever an upstream sends."""
    with pytest.raises(BackendFailure):
        dialect.own_event(data, "resp_1", 0)
