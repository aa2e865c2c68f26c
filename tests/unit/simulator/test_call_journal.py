"""What is written down of a simulated call."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fake_env import FakeJournal, make_call
from tpo_mp.simulator.call_journal import CallJournal, JournalOptions
from tpo_mp.types import Call, Reply, Usage


def noted(call: Call, status: int = 200, reply: Reply | None = None, most: int = 4096) -> Any:
    """Write one call down and read it."""
    log = FakeJournal()
    CallJournal(JournalOptions(enabled=True, body_bytes=most), log, lambda: 12.0).note(
        call, status, reply
    )
    return json.loads(log.kept[0])


def test_a_call_is_told_with_its_answer() -> None:
    """Method, path, model, status, counts, time; the key by its hash alone."""
    reply = Reply(200, b"{}")
    reply.usage = Usage(5, 7)
    call = make_call(b'{"model": "m"}', model="m", upstream_at=11.5)
    call.authorization = b"Bearer sk-secret"
    found = noted(call, 200, reply)
    assert (found["method"], found["path"], found["model"]) == (
        "POST", "/v1/chat/completions", "m",
    )  # fmt: skip
    assert (found["status"], found["prompt_tokens"], found["completion_tokens"]) == (200, 5, 7)
    assert found["duration_ms"] == 500
    assert found["body"] == {"model": "m"}
    assert found["body_whole"]
    assert found["key"]
    assert "sk-secret" not in json.dumps(found)


def test_a_long_body_is_cut() -> None:
    """Its true length is told."""
    found = noted(make_call(b'"' + b"x" * 100 + b'"', upstream_at=11.0), most=10)
    assert (found["body"], found["body_bytes"], found["body_whole"]) == ('"xxxxxxxxx', 102, False)


def test_what_matched_is_told() -> None:
    """A backend's word, or else the order that the request brought."""
    ordered = make_call(b"{}", upstream_at=11.0)
    ordered.forward = b"traceparent: x\r\nx-sim-error: 429\r\n"
    assert noted(ordered, 429)["matched"] == "x-sim-error: 429"
    ordered.note = "rule weather"
    assert noted(ordered)["matched"] == "rule weather"
    assert noted(make_call(b"not json", upstream_at=11.0))["matched"] is None
