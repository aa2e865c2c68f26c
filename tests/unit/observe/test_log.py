"""Logs: one event is one line in either format."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpo_mp.observe.log import Format, configure


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_an_event_is_one_line(form: Format) -> None:
    """Text of a client cannot start a new line."""
    out = io.StringIO()
    log = configure(form, process="shard-00", stream=out)
    log.info("refused", path="/\nINFO forged\x1b[2J")
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "shard-00" in lines[0]
    assert "\x1b[2J" not in lines[0]


def test_json_lines_are_json() -> None:
    """Level, time and fields are there."""
    out = io.StringIO()
    configure("json", stream=out).warning("calls_lost", letters=3)
    row = json.loads(out.getvalue())
    assert (row["event"], row["level"], row["letters"]) == ("calls_lost", "warning", 3)
    assert row["timestamp"].endswith("Z")


def test_lines_below_the_level_are_not_written() -> None:
    """A level is a threshold."""
    out = io.StringIO()
    log = configure("json", "warning", stream=out)
    log.info("quiet")
    log.error("loud")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["loud"]


def test_an_exception_tells_its_kinds_and_places_only() -> None:
    """A prompt or a secret in its words or in a frame's variables never reaches the log."""
    for form in ("pretty", "json"):
        out = io.StringIO()
        log = configure(form, stream=out)
        secret = "sk-not-for-" + "logs"
        try:
            try:
                int(secret)
            except ValueError as error:
                raise KeyError(secret) from error
        except KeyError as error:
            log.exception("failed")
            log.error("failed", exc_info=error)
        told = out.getvalue()
        assert secret not in told
        assert told.count("builtins.KeyError") == told.count("builtins.ValueError") == 2
        assert "test_log.py" in told


@pytest.mark.parametrize("module", ["tpo_mp.worker.shard", "tpo_mp.control.process"])
def test_processes_start_without_what_only_decorates(module: str, tmp_path: Path) -> None:
    """structlog finds no rich, which costs a seventh of a start; who wants it later gets it."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("")
    code = f"import {module}, sys; assert 'rich' not in sys.modules; import rich"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
