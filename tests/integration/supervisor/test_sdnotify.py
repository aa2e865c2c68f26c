"""The service manager's socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.supervisor.sdnotify import ServiceNotifier


@pytest.fixture
def manager(short_tmp: Path) -> Iterator[socket.socket]:
    """A listening end, as systemd has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        path = short_tmp / f"notify-{os.urandom(4).hex()}"
        listening.bind(str(path))
        listening.setblocking(False)
        yield listening


def notifier(manager: socket.socket, **env: str) -> ServiceNotifier:
    """One that knows the socket."""
    return ServiceNotifier({"NOTIFY_SOCKET": manager.getsockname(), **env})


def test_states_are_told(manager: socket.socket) -> None:
    """READY, RELOADING with its clock, STOPPING."""
    service = notifier(manager)
    service.ready("serving")
    service.reloading(1.5)
    service.stopping()
    service.close()
    told = [manager.recv(200).decode() for _ in range(3)]
    assert told[0].startswith("READY=1\n")
    assert told[1] == "RELOADING=1\nMONOTONIC_USEC=1500000"
    assert told[2] == "STOPPING=1"


def test_the_watchdog_is_fed_at_half_its_period(manager: socket.socket) -> None:
    """Two seconds asked, one second between feedings."""
    service = notifier(manager, WATCHDOG_USEC="2000000", WATCHDOG_PID=str(os.getpid()))
    for now in (10.0, 10.5, 11.0, 11.9):
        service.ping(now)
    service.close()
    assert manager.recv(100) == b"WATCHDOG=1"
    assert manager.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_a_watchdog_for_another_process_is_not_ours(manager: socket.socket) -> None:
    """``WATCHDOG_PID`` names who must feed."""
    service = notifier(manager, WATCHDOG_USEC="2000000", WATCHDOG_PID="1")
    service.ping(10.0)
    service.close()
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_without_a_service_manager_nothing_happens() -> None:
    """No socket named, or one that is gone."""
    for env in ({}, {"NOTIFY_SOCKET": "/nonexistent/notify"}):
        service = ServiceNotifier(env)
        service.ready("serving")
        service.close()
