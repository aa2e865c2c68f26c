"""Questions to an engine, and what is killed of one that was left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.wait import free_port, wait_for
from tpo_mp.supervisor.engine_probe import EngineProbe
from tpo_mp.supervisor.engine_records import (
    TOKEN,
    EngineRecord,
    clear_leftovers,
    kill_engine,
    read_record,
    record_path,
    write_record,
)

SLEEP = "import time; time.sleep(600)"


def answered(probe: EngineProbe, now: float = 0.0) -> int:
    """Take turns until there is an answer."""
    return int(str(wait_for(lambda: None if (s := probe.turn(now)) is None else str(s), 10)))


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.0 503 Busy\r\n\r\n", 503),
        (b"no HTTP at all\r\n", 0),
        (b"HTTP/1.1 ", 0),
        (b"x" * 10_000, 0),
        (b"", 0),
    ],
)
def test_an_answer_counts_by_its_status_line(said: bytes, status: int) -> None:
    """Whatever comes in pieces or is no answer; nothing waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /health HTTP/1.1\r\n")
                with suppress(ConnectionError):  # it need not hear all of it
                    for at in range(0, len(said), 7):
                        connection.sendall(said[at : at + 7])

        server = threading.Thread(target=serve)
        server.start()
        assert answered(EngineProbe(port, "/health", 5.0)) == status
        server.join()


def test_nobody_there_and_nobody_in_time_are_no_answer() -> None:
    """A closed port at once, a silent one when it is given up."""
    assert answered(EngineProbe(free_port(), "/health", 5.0)) == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = EngineProbe(listener.getsockname()[1], "/health", 5.0)
        wait_for(lambda: probe.turn(1.0) is None and probe._connected, 10)
        assert probe.turn(4.9) is None
        assert probe.turn(5.0) == 0
        assert probe.waits_for is None


def test_an_empty_path_only_connects() -> None:
    """For engines that have no page to ask for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert answered(EngineProbe(listener.getsockname()[1], "", 5.0)) == 200


@pytest.fixture
def engine() -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A process that leads a group, and one that left it but has its mark."""
    env = os.environ | {TOKEN: "the-mark"}
    first = subprocess.Popen([sys.executable, "-c", SLEEP], env=env, start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", SLEEP], env=env, start_new_session=True)
    yield first, other
    for process in (first, other):
        process.kill()
        process.wait()


def test_what_is_left_of_an_engine_is_killed_by_its_mark(
    engine: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The leader and whoever left its group; the record goes, and so does one that is broken."""
    first, other = engine
    write_record(tmp_path, EngineRecord.of("e", first.pid, "the-mark"))
    (tmp_path / "engine-broken.run").write_text("{")
    reaper = threading.Thread(target=lambda: (first.wait(), other.wait()))
    reaper.start()
    assert clear_leftovers(tmp_path) == ["e"]
    reaper.join(10)
    assert (first.returncode, other.returncode) == (-9, -9)
    assert not list(tmp_path.iterdir())
    assert clear_leftovers(tmp_path) == []


def test_who_has_no_mark_is_found_beside_its_leader(tmp_path: Path) -> None:
    """Of the same group; who is in no group that is known and has no mark is left alone."""
    told = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={}); "
    leader = subprocess.Popen([sys.executable, "-c", told + SLEEP, SLEEP], start_new_session=True)
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP], env={}, start_new_session=True)
    try:
        found = psutil.Process(leader.pid)
        (member,) = wait_for(found.children, 20, "its child")
        assert kill_engine(EngineRecord.of("e", leader.pid, "a-mark"), passes=1) == 2
        leader.wait(20)
        wait_for(lambda: not member.is_running() or member.status() == psutil.STATUS_ZOMBIE, 20,
                 "its child to end")  # fmt: skip
        assert stranger.poll() is None
    finally:
        for process in (leader, stranger):
            process.kill()
            process.wait()


def test_a_number_that_was_given_to_somebody_else_kills_nobody(
    engine: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """It began at another moment and has another mark."""
    first, other = engine
    record = EngineRecord.of("e", first.pid, "another-mark")
    assert kill_engine(replace(record, started_at=record.started_at - 60)) == 0
    assert first.poll() is other.poll() is None
    path = record_path(tmp_path, "e")
    path.write_text("[]")
    assert read_record(path) is None
