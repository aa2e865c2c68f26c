"""The native surface: prompts to calls, records, pages of dead letters."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_gateway import Surface, whole
from tpo_mp.errors import BackendFailure
from tpo_mp.surfaces.native_api import FEATURE
from tpo_mp.types import Terminal

COMPLETION = json.dumps(
    {
        "model": "m",
        "choices": [{"message": {"content": "said"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
).encode()


def test_prompt_becomes_a_chat_call_with_native_defaults() -> None:
    """Model, sampling and length come from the config when the request is silent."""
    surface = Surface(FEATURE)
    surface.ask("POST", "/v1/prompt", {"prompt": "hi", "session_id": "s"})
    (delivery,) = surface.gateway.submitted
    body = json.loads(delivery.call.body)
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["model"], body["max_tokens"]) == ("echo", 256)
    assert body["temperature"] == 0.7
    assert surface.gateway.affinities == ["s"]


def test_request_outranks_the_defaults() -> None:
    """Zero is a temperature, not an absence."""
    surface = Surface(FEATURE)
    surface.ask(
        "POST", "/v1/prompt", {"input": "hi", "model": "m", "temperature": 0, "max_tokens": 9}
    )
    body = json.loads(surface.gateway.submitted[0].call.body)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0)


def test_deadline_of_the_body_bounds_the_call() -> None:
    """Seconds from now, whichever of its two names is used."""
    for field in ("deadline_secs", "timeout_seconds"):
        surface = Surface(FEATURE)
        surface.ask("POST", "/v1/prompt", {"prompt": "hi", field: 2.5})
        call = surface.gateway.submitted[0].call
        assert call.deadline == call.started_at + 2.5


def test_answered_prompt_is_a_completed_record() -> None:
    """One record with everything a caller may want."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", "/v1/prompt", {"prompt": "hi"})
    surface.gateway.submitted[0].done(whole(COMPLETION), None)
    record = exchange.json()
    assert (record["status"], record["result"], record["model"]) == ("completed", "said", "m")
    assert record["finish_reason"] == "stop"
    assert surface.gateway.ends == [Terminal.DONE]


def test_reply_that_is_no_completion_is_a_bad_upstream() -> None:
    """The native dialect needs the text, so a reply without one fails."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", "/v1/prompt", {"prompt": "hi"})
    surface.gateway.submitted[0].done(whole(b"[1]"), None)
    assert exchange.status == 502
    assert surface.gateway.ends == [Terminal.FAILED]


def test_failed_prompt_is_an_error_with_its_id() -> None:
    """The error names the call."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", "/v1/prompt", {"prompt": "hi"})
    surface.gateway.submitted[0].done(None, BackendFailure("broken"))
    assert exchange.status == 502
    assert exchange.json()["error"]["request_id"] == "call-1"


def test_inferred_prompt_is_accepted_at_once() -> None:
    """The answer is the record so far and where its end will be."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", "/api/v1/infer", {"prompt": "hi", "session_id": 7})
    assert exchange.status == 200
    assert exchange.json()["status"] == "processing"
    assert b"location: /api/v1/result/call-1\r\n" in exchange.extra
    assert len(surface.gateway.accepted) == 1
    assert exchange.on_disconnect is None


def test_client_may_prefer_to_come_back() -> None:
    """``Prefer: respond-async`` on a prompt is an accepted call."""
    surface = Surface(FEATURE)
    headers = {"Prefer": "wait=5, Respond-Async"}
    assert surface.ask("POST", "/v1/prompt", {"prompt": "hi"}, headers).status == 202
    assert surface.gateway.submitted == []


@pytest.mark.parametrize(
    ("status", "answered"), [("processing", 202), ("completed", 200), ("failed", 200)]
)
def test_result_says_whether_it_is_final(status: str, answered: int) -> None:
    """202 while the call runs, 200 once it ended, however it ended."""
    kept = json.dumps({"status": status}).encode()
    surface = Surface(FEATURE, results={"id-1": kept})
    exchange = surface.ask("GET", "/api/v1/result/id-1")
    assert (exchange.status, exchange.answer) == (answered, kept)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/v1/result/unknown", 404),
        ("/api/v1/result/x?wait=-1", 400),
        ("/api/v1/result/x?wait=soon", 400),
        ("/api/v1/result/x?wait=1&wait=2", 400),
    ],
)
def test_questions_that_cannot_be_answered(target: str, status: int) -> None:
    """Bad pages are the client's, a silent store is ours; nothing is a 500."""
    assert Surface(FEATURE).refusal("GET", target).status == status
