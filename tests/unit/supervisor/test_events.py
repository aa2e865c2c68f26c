"""Event lines."""

from __future__ import annotations

import io
import json
import os

import pytest

from tpo_mp.supervisor.events import EventLog, write_line


def test_pretty_lines_quote_what_has_spaces() -> None:
    """Fields stay one word each, so that a person and a grep can read them."""
    out = io.StringIO()
    EventLog(stream=out)("worker_died", "error", pid=7, hint="out of memory", words=None)
    line = out.getvalue()
    assert line.endswith('[error    ] worker_died pid=7 hint="out of memory" process=supervisor\n')


def test_json_lines_are_objects() -> None:
    """One object per line with time, level and event."""
    out = io.StringIO()
    EventLog("json", stream=out)("ready", boot_ms=12)
    record = json.loads(out.getvalue())
    assert (record["level"], record["event"], record["boot_ms"]) == ("info", "ready", 12)


@pytest.mark.parametrize("text", ["one\ntwo", 'say "hi"', ""])
def test_an_event_is_one_line_whatever_it_says(text: str) -> None:
    """A child's words cannot forge a second line."""
    out = io.StringIO()
    EventLog(stream=out)("died", words=text)
    assert out.getvalue().count("\n") == 1


def test_a_reader_that_stopped_reading_costs_lines_not_time() -> None:
    """A full pipe drops the line and counts it."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as stream, os.fdopen(read_fd, "rb"):
        events = EventLog(stream=stream)
        for _ in range(100):
            events("x" * 3000)
        assert events.dropped > 50


def test_a_reader_that_left_is_no_error() -> None:
    """A broken pipe only loses the line."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    stream = os.fdopen(write_fd, "w")
    assert not write_line(stream, "hello")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_lines_below_the_least_level_are_not_written() -> None:
    """``observability.log_level`` holds for the supervisor too."""
    out = io.StringIO()
    events = EventLog("pretty", "warning", out)
    events("ready")
    events("worker_died", "error")
    assert "ready" not in out.getvalue()
    assert "worker_died" in out.getvalue()
