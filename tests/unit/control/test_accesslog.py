"""The access log's file, without a process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.integration.control.host import record
from tpo_mp.control import accesslog as module
from tpo_mp.control.accesslog import AccessLog

encode = msgspec.msgpack.Encoder().encode


def batch(*call_ids: str) -> bytes:
    """A batch of call records."""
    return encode([record(call_id) for call_id in call_ids])


def written(path: Path) -> list[str]:
    """Call ids of the lines in a file."""
    return [
        word.removeprefix("id=")
        for line in path.read_text().splitlines()
        for word in line.split()
        if word.startswith("id=")
    ]


def test_off_is_off() -> None:
    """Nothing is queued, nothing is counted."""
    log = AccessLog()
    log.offer(batch("a"))
    assert log.dropped == 0


def test_every_record_is_a_line(tmp_path: Path) -> None:
    """Batches are written in order; a damaged one is left out."""
    log = AccessLog()
    log.configure(str(tmp_path / "a.log"), "text")
    for item in (batch("one", "two"), b"\xc1", batch("three")):
        log.offer(item)
    log.close(5.0)
    assert written(tmp_path / "a.log") == ["one", "two", "three"]


def test_lines_that_a_full_disk_did_not_take_are_counted(tmp_path: Path) -> None:
    """By the batch; the log goes on when there is room."""
    log = AccessLog()
    log.configure("/dev/full", "text")
    log.offer(batch("one"))
    log.offer(batch("two"))
    log.close(5.0)
    assert log.dropped == 2
    log.configure(str(tmp_path / "a.log"), "text")
    log.offer(batch("three"))
    log.close(5.0)
    assert (written(tmp_path / "a.log"), log.dropped) == (["three"], 2)


def test_another_place_is_used_from_then_on(tmp_path: Path) -> None:
    """A reload moves the log and loses no line."""
    log = AccessLog()
    log.configure(str(tmp_path / "a.log"), "text")
    log.offer(batch("one"))
    log.configure(str(tmp_path / "b.log"), "text")
    log.offer(batch("two"))
    log.close(5.0)
    assert (written(tmp_path / "a.log"), written(tmp_path / "b.log")) == (["one"], ["two"])


def test_a_full_file_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cap the file becomes NAME.1; there are never more than two."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    for n in range(4):
        log = AccessLog()
        log.configure(str(tmp_path / "a.log"), "text")
        log.offer(batch(f"call{n}"))
        log.close(5.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    assert written(tmp_path / "a.log") == ["call3"]


def test_a_place_that_cannot_be_written_costs_lines_only(tmp_path: Path) -> None:
    """A directory instead of a file is survived."""
    log = AccessLog()
    log.configure(str(tmp_path), "text")
    log.offer(batch("one"))
    log.close(5.0)
