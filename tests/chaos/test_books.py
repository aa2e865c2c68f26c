"""Workers killed with an answer just given: whoever was answered is in the audit, once."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.raw import ClosedEarlyError, RawClient, chat
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
LEFT_ALIVE = 5
"""Turns with something to book before the one that the worker dies in."""


def answered(host: Host, body: dict[str, Any]) -> list[str]:
    """Ask one after the other until the worker dies; the ids of the calls with an answer."""
    ids: list[str] = []
    with RawClient(host.url, timeout_s=30) as client:
        try:
            while True:
                told = client.post_json(CHAT, body)
                assert told.status == 200, told.body
                ids.append(told.headers["x-tpo-call-id"])
                # Twice what is needed, should a turn have had several.
                assert len(ids) < 50, "no death"
        except (ClosedEarlyError, ConnectionError):
            return ids


def recorded(host: Host) -> dict[str, dict[str, Any]]:
    """What the audit has, by call."""
    found = host.ask_store("/api/v1/audit?limit=1000")["entries"]
    entries = [entry for entry in found if entry["path"] == CHAT]
    names = Counter(entry["id"] for entry in entries)
    assert set(names.values()) <= {1}, names
    return {entry["id"]: entry for entry in entries}


def dying(short_tmp: Path, point: str) -> Host:
    """Two workers, each of which dies at a place in the code."""
    points = f"repeats.whole_way=drop;{point}=kill9:1:{LEFT_ALIVE}"
    env = {"TPO_TEST": "1", "TPO_FAILPOINTS": points}
    return Host(Path(tempfile.mkdtemp(dir=short_tmp)), workers=2, env=env)


def test_calls_answered_before_they_were_booked_are_in_the_audit(short_tmp: Path) -> None:
    """As crashed with the error ``record_lost``: that they were over is all that is known."""
    with dying(short_tmp, "books.calls") as host:
        ids = answered(host, chat("words", "echo"))
        assert len(ids) > LEFT_ALIVE
        wait_for(lambda: set(ids) <= set(recorded(host)), 30, "their records")
        entries = recorded(host)
        assert len(entries) == len(ids)
        lost = [entries[name] for name in ids if entries[name]["terminal"] != "done"]
        # The last one, and those whose batch had not left.
        assert entries[ids[-1]] in lost
        assert {(e["terminal"], e["error"], e["status"]) for e in lost} == {
            ("crashed", "record_lost", 0)
        }
        assert {(e["path"], e["model_id"]) for e in lost} == {(CHAT, "echo")}
        assert host.letters() == []
        host.end()


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeat_is_answered_once_it_is_booked(short_tmp: Path, stream: bool) -> None:
    """No slot tells of it: its worker writes no answer before the record has left."""
    with dying(short_tmp, "books.repeats") as host:
        ids = answered(host, chat("words", "echo", temperature=0, stream=stream))
        assert len(ids) > LEFT_ALIVE
        wait_for(lambda: set(ids) <= set(recorded(host)), 30, "their records")
        entries = recorded(host)
        repeats = [e for e in entries.values() if e["cache"] == "hit"]
        assert len(repeats) >= LEFT_ALIVE
        assert {e["terminal"] for e in repeats} == {"done"}
        host.end()
