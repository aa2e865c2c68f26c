"""Access lines: one line per call, whatever the client wrote."""

from __future__ import annotations

import json

import pytest

from tpo_mp.observe.access import Form, render
from tpo_mp.shm.frames import RecordFrame

EVIL = 'x\n127.0.0.1 admin "GET / 200\r\x1b[2J\x00\u2028\x85"\\'


def record(**changes: object) -> RecordFrame:
    """A call record."""
    fields: dict[str, object] = {
        "call_id": "0000", "finished_at": 1_700_000_000.25, "started_at": 1_700_000_000.0,
        "method": "POST", "path": "/v1/chat/completions", "status": 200, "terminal": "done",
        "model": "echo", "backend": "echo", "stream": False, "tenant": "team", "key_id": "key",
        "session": "s", "client_request_id": "req-1", "prompt_tokens": 3, "completion_tokens": -1,
        "bytes_in": 260, "bytes_out": 300, "duration_s": 0.25, "first_byte_s": 0.1, "attempts": 1,
        "shard": 0, "error": "", "peer": "127.0.0.1",
    }  # fmt: skip
    return RecordFrame(**(fields | changes))  # type: ignore[arg-type]


def test_a_text_line_reads_as_documented() -> None:
    """Columns in order; unknown values are a dash."""
    assert render(record(), "text").decode() == (
        '2023-11-14T22:13:20.250Z 127.0.0.1 team "POST /v1/chat/completions" 200 done echo echo'
        " 250.000ms first=100.000ms in=260 out=300 tokens=3/- attempts=1 shard=0 id=0000"
        " request=req-1 error=- cost=-\n"
    )


def test_a_json_line_holds_the_record() -> None:
    """Every field but no prompt."""
    row = json.loads(render(record(), "json"))
    assert row["at"] == "2023-11-14T22:13:20.250Z"
    assert (row["status"], row["duration_s"], row["peer"]) == (200, 0.25, "127.0.0.1")
    assert (row["cost_usd"], row["cache"]) == (None, "")


def test_a_cost_is_told_when_there_is_one() -> None:
    """Nothing spent is 0, and not known is not."""
    assert b" cost=0.000000\n" in render(record(cost_usd=0.0), "text")
    assert b" cost=0.012500\n" in render(record(cost_usd=0.0125), "text")
    assert json.loads(render(record(cost_usd=0.0125), "json"))["cost_usd"] == 0.0125


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "name", ["path", "method", "model", "tenant", "client_request_id", "peer", "error", "session"]
)
def test_no_client_can_forge_a_line(form: Form, name: str) -> None:
    """Control characters, quotes and line separators are escaped in both forms."""
    line = render(record(**{name: EVIL}), form)
    text = line.decode()
    assert line.endswith(b"\n")
    assert not [c for c in text[:-1] if ord(c) < 32 or c == "\x7f"]
    assert len(text.splitlines()) == 1 or form == "json"
    assert b"\n" not in line[:-1]
    if form == "json":
        assert json.loads(line)[name] == EVIL


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_lone_surrogate_is_no_error(form: Form) -> None:
    """Undecodable bytes of a header arrive as surrogates; the line is valid UTF-8."""
    assert b"udc80" in render(record(model="a\udc80b"), form)
