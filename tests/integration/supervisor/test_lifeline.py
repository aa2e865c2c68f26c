"""A child's bond to its parent, without a supervisor around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.wait import wait_for
from tpo_mp.shm.lifeline import root_cause

CHILD = """
import os, sys, time
from types import SimpleNamespace
from tpo_mp.shm.lifeline import bind_to_parent, last_words
handoff = SimpleNamespace(
    seat=3, supervisor_pid=int(sys.argv[1]), lifeline_fd=int(sys.argv[2]),
    state_dir=sys.argv[3], portable=sys.argv[4] == "1",
)
bind_to_parent(handoff)
os.set_blocking(handoff.lifeline_fd, False)
print("bound", flush=True)
if sys.argv[5] == "raise":
    raise ExceptionGroup("many", [ValueError("the real\\nreason")])
while True:
    time.sleep(60)
"""


def child(
    folder: Path, lifeline_fd: int, *, portable: bool, act: str = "wait", parent: int | None = None
) -> subprocess.Popen[str]:
    """Start a child that binds itself to this process."""
    arguments = [str(parent or os.getpid()), str(lifeline_fd), str(folder), str(int(portable)), act]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        pass_fds=[lifeline_fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_cut_lifeline_ends_even_a_blocked_child(tmp_path: Path) -> None:
    """Where no kernel tells of the parent's death a thread does, event loop or not."""
    read_fd, write_fd = os.pipe()
    with child(tmp_path, read_fd, portable=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        os.close(write_fd)
        assert process.wait(30) == 1
    os.close(read_fd)


def test_a_child_of_another_parent_ends_at_once(tmp_path: Path) -> None:
    """The parent died between fork and the call: its pid is not ours any more."""
    read_fd, write_fd = os.pipe()
    with child(tmp_path, read_fd, portable=False, parent=1) as process:
        assert process.wait(30) == 1
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.parametrize("portable", [False, True])
def test_signals_for_the_supervisor_do_not_end_a_child(tmp_path: Path, portable: bool) -> None:
    """INT, TERM, QUIT, HUP and USR2 reach the whole group and mean only the supervisor."""
    read_fd, write_fd = os.pipe()
    with child(tmp_path, read_fd, portable=portable) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            process.send_signal(number)
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGABRT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in errors
    os.close(read_fd)
    os.close(write_fd)


def test_an_uncaught_error_becomes_one_line_of_last_words(tmp_path: Path) -> None:
    """The first leaf of a group is the reason, on one line, and the traceback still shows."""
    read_fd, write_fd = os.pipe()
    with child(tmp_path, read_fd, portable=False, act="raise") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    words = tmp_path / "seat-03.words"
    assert wait_for(words.exists, 10, "last words")
    assert words.read_text() == "ValueError: the real reason\n"
    assert "ExceptionGroup" in errors
    os.close(read_fd)
    os.close(write_fd)


def test_the_cause_of_nested_groups_is_their_first_leaf() -> None:
    """Task groups wrap what went wrong."""
    leaf = OSError("disk")
    assert root_cause(ExceptionGroup("a", [ExceptionGroup("b", [leaf]), ValueError()])) is leaf
