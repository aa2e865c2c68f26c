"""A start whose processes import before there is a configuration, and what becomes of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.host import Host
from tests.support.wait import wait_for
from tests.unit.shm.test_handoff import FIELDS
from tpo_mp.shm import handoff, late_handoff
from tpo_mp.supervisor.cradle import MOST_EARLY, Cradle, early_workers

OWNER = """
import time
from tpo_mp.supervisor.cradle import Cradle
with Cradle() as cradle:
    cradle.fill(1)
    print("filled", flush=True)
    time.sleep(600)
"""


def early(parent: int) -> list[psutil.Process]:
    """Children that were started before there was a handoff for them."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if late_handoff.ENV in child.environ():
                found.append(child)
    return found


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more, also where nobody reaps it."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def telling(**fields: Any) -> handoff.Handoff:
    """A handoff without descriptors, but for those given."""
    none: dict[str, Any] = {name: -1 for name in FIELDS if name.endswith("_fd")}
    none |= {"ops_listener": -1, "listeners": [], "engine_bells": [], "doorbells": []}
    return handoff.Handoff(**(FIELDS | none | fields))


def test_descriptors_come_by_other_numbers_and_are_the_same_things() -> None:
    """Each once, and nobody inherits them; the handoff says what the child calls them."""
    ours, its = socket.socketpair()
    read, write = os.pipe()
    try:
        born = telling(lifeline_fd=read, doorbells=[(read, write)])
        assert sorted(born.descriptors()) == sorted({read, write})
        assert late_handoff.give(ours, born.to_json(), born.descriptors())
        taken = late_handoff.take({late_handoff.ENV: str(its.detach())})
        assert taken is not None
        text, numbers = taken
        assert set(numbers) == {read, write}
        assert not any(os.get_inheritable(number) for number in numbers.values())
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


@pytest.mark.parametrize(
    ("flag", "env", "number"),
    [
        (None, {}, 4),
        ("auto", {"TPO_WORKERS": "2"}, 4),
        ("3", {"TPO_WORKERS": "2"}, 3),
        (None, {"TPO_WORKERS": " 2 ", "WORKERS": "1"}, 2),
        (None, {"WORKERS": "1"}, 1),
        ("64", {}, 4),
        ("0", {}, 4),
        ("9" * 5000, {}, 4),
        ("many", {}, 4),
    ],
)
def test_as_many_come_early_as_a_start_surely_needs(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, env: dict[str, str], number: int
) -> None:
    """By flag or environment, or one for each CPU; what is refused anyway disturbs nobody."""
    for name in ("TPO_WORKERS", "WORKERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert early_workers({} if flag is None else {"workers": flag}, cpus=4) == number
    assert early_workers({}, cpus=400) <= MOST_EARLY


def test_a_role_that_a_test_plays_itself_gets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module knows of no late handoff."""
    monkeypatch.setenv("TPO_TEST", "1")
    monkeypatch.setenv("TPO_WORKER_MODULE", "tests.support.fake_worker")
    known = {child.pid for child in early(os.getpid())}
    with Cradle() as cradle:
        cradle.fill(2)
        fresh = [child for child in early(os.getpid()) if child.pid not in known]
        assert [child.cmdline()[-1] for child in fresh] == ["tpo_mp.control"]


def test_those_that_nobody_needs_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that died gets no handoff; closing ends the rest; none of them saw a secret."""
    monkeypatch.setenv("TPO_ADMIN_KEY", "a-secret")
    known = {child.pid for child in early(os.getpid())}
    with Cradle() as cradle:
        cradle.fill(1)
        cradle.fill(1)
        children = [child for child in early(os.getpid()) if child.pid not in known]
        assert len(children) == 2
        assert not any("TPO_ADMIN_KEY" in child.environ() for child in children)
        worker = next(child for child in children if "tpo_mp.worker" in child.cmdline())
        worker.send_signal(signal.SIGKILL)
        wait_for(lambda: ended(worker), 10, "its end")
        assert cradle.take("shard", telling()) is None
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("portable", ["0", "1"])
def test_a_supervisor_killed_before_it_gave_a_handoff_leaves_nobody(portable: str) -> None:
    """The kernel tells its children, or the end of file that they wait at."""
    environ = os.environ | {"TPO_PORTABLE": portable}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=ROOT, env=environ
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"filled\n"
        children = early(owner.pid)
        owner.kill()
        owner.wait(30)
    assert len(children) == 2
    wait_for(lambda: all(map(ended, children)), 20, "nobody left")


def test_an_interrupt_in_the_middle_of_a_start_leaves_nobody(short_tmp: Path) -> None:
    """Ctrl-C reaches the whole group: the supervisor ends, and ends the others."""
    gateway = Gateway(short_tmp / "gone", verb="simulate")
    with subprocess.Popen(
        gateway.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
        env=gateway.environment, start_new_session=True,
    ) as supervisor:  # fmt: skip
        wait_for(lambda: early(supervisor.pid), 30, "one that imports early", every_s=0.001)
        everybody = psutil.Process(supervisor.pid).children(recursive=True)

        def interrupted() -> bool:  # again: Python drops one that comes in a destructor
            gone = supervisor.poll() is not None
            if not gone:
                os.killpg(supervisor.pid, signal.SIGINT)
            return gone

        wait_for(interrupted, 30, "the end", every_s=1)
    wait_for(lambda: all(map(ended, everybody)), 20, "nobody left")


def test_the_first_come_early_and_nobody_is_left_over(short_tmp: Path) -> None:
    """As many as there are CPUs for; the spare is started when all is ready, as any later one."""
    with Host(short_tmp / "early", workers=2) as host:
        ready = host.logged("ready", 1)[0]
        assert 2 <= ready["imported_early"] <= 3, "control, and one or two workers"
        host.warm()
        assert host.ask("/live").json()["alive"]
        status = host.status()
        ours = {status["control"]["pid"], status["spare"]["pid"], *host.worker_pids()}
        supervisor = psutil.Process(host.pid)
        wait_for(lambda: {child.pid for child in supervisor.children()} == ours, 20, "nobody else")
