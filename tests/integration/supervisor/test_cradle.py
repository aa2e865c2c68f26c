"""A start whose processes import before there is a configuration, and what becomes of them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.support.host import Host
from tests.support.wait import wait_for
from tests.unit.shm.test_handoff import FIELDS
from tpo_mp.shm import handoff, late_handoff
from tpo_mp.supervisor.cradle import Cradle, early_workers


def test_descriptors_come_by_other_numbers_and_are_the_same_things() -> None:
    """Each once; a handoff with them says what the child calls them."""
    ours, its = socket.socketpair()
    read, write = os.pipe()
    try:
        fields = FIELDS | {name: -1 for name in FIELDS if name.endswith("_fd")}
        fields |= {
            "lifeline_fd": read, "ops_listener": -1, "listeners": [], "engine_bells": [],
            "doorbells": [(read, write)],
        }  # fmt: skip
        born = handoff.Handoff(**fields)
        assert sorted(born.descriptors()) == sorted({read, write})
        assert late_handoff.give(ours, born.to_json(), born.descriptors())
        taken = late_handoff.take({late_handoff.ENV: str(its.detach())})
        assert taken is not None
        text, numbers = taken
        assert set(numbers) == {read, write}
        here = handoff.Handoff.decode(text).renumbered(numbers)
        assert here.plane_fd == -1
        assert here.doorbells == [(numbers[read], numbers[write])]
        os.write(numbers[write], b"x")
        assert os.read(here.lifeline_fd, 1) == b"x"
        for number in numbers.values():
            os.close(number)
    finally:
        for fd in (read, write):
            os.close(fd)
        ours.close()


@pytest.mark.parametrize("told", [b"", b"\x01\0\0", b"\0\0\0\0\x05\0\0\0{"])
def test_half_a_handoff_is_none(told: bytes) -> None:
    """Nobody who has it can begin."""
    ours, its = socket.socketpair()
    with ours:
        ours.sendall(told)
    assert late_handoff.take({late_handoff.ENV: str(its.detach())}) is None


def test_more_than_a_message_carries_is_not_given() -> None:
    """Its child is started as any other."""
    ours, its = socket.socketpair()
    with ours, its:
        many = list(range(late_handoff.MOST_DESCRIPTORS + 1))
        assert not late_handoff.give(ours, b"{}", many)


def test_as_many_come_early_as_a_start_surely_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag or environment, or one for each core."""
    monkeypatch.delenv("TPO_WORKERS", raising=False)
    assert early_workers({"workers": "1"}) == 1
    assert early_workers({}) >= 1
    monkeypatch.setenv("TPO_WORKERS", "1")
    assert early_workers({}) == 1


def test_those_that_nobody_needs_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that died gets no handoff; closing ends the rest."""
    monkeypatch.delenv("TPO_TEST", raising=False)
    with Cradle() as cradle:
        cradle.fill(1)
        children = [
            child for child in psutil.Process().children()
            if late_handoff.ENV in child.environ()
        ]  # fmt: skip
        assert len(children) == 2
        worker = next(child for child in children if "tpo_mp.worker" in child.cmdline())
        worker.send_signal(signal.SIGKILL)
        wait_for(lambda: worker.status() == psutil.STATUS_ZOMBIE, 10, "its end")
        assert cradle.take("shard", handoff.Handoff(**FIELDS)) is None
    assert not any(child.is_running() for child in children)


def test_the_first_come_early_and_nobody_is_left_over(short_tmp: Path) -> None:
    """As many as there are cores for; the spare is started when all is ready, as any later one."""
    with Host(short_tmp / "early", workers=2) as host:
        ready = host.logged("ready", 1)[0]
        assert ready["imported_early"] == 1 + early_workers({"workers": "2"})
        host.warm()
        assert host.ask("/live").json()["alive"]
        status = host.status()
        ours = {status["control"]["pid"], status["spare"]["pid"], *host.worker_pids()}
        supervisor = psutil.Process(host.pid)
        wait_for(lambda: {child.pid for child in supervisor.children()} == ours, 20, "nobody else")
