"""Reaches into a running host: its shared segments, and its processes' descriptors.

Linux only; a test that needs it is skipped elsewhere.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from .gateway import Gateway
from .host import Host

_PIDFD_GETFD = 438


def needs_linux() -> None:
    """Skip where processes cannot be looked into."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc and pidfd_getfd")


def descriptors(pid: int, kind: str) -> list[int]:
    """Descriptors of a process whose link contains ``kind``, ascending."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if kind in str(entry.readlink()):
                found.append(int(entry.name))
        except FileNotFoundError:
            continue
    return sorted(found)


def shared(host: Gateway, segment: str) -> mmap.mmap:
    """Map one of the host's segments, writable, through the supervisor's descriptor."""
    fd = descriptors(host.pid, segment)[0]
    with Path(f"/proc/{host.pid}/fd/{fd}").open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def bell(host: Host, seat: int, *, portable: bool) -> int:
    """A copy of the descriptor that rings a seat; the caller closes it."""
    if portable:
        # Bells are the first pipes the supervisor made, a reading and a writing end each.
        fd = descriptors(host.pid, "pipe:")[2 * seat + 1]
    else:
        fd = descriptors(host.pid, "[eventfd]")[seat]
    return copied(host, fd)


def listener(host: Host) -> socket.socket:
    """A copy of the only listener of a host of one worker; the caller closes it."""
    (fd,) = [
        c.fd for c in psutil.Process(host.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == host.port
    ]  # fmt: skip
    return socket.socket(fileno=copied(host, fd))


def copied(host: Host, fd: int) -> int:
    """A copy of a descriptor of the supervisor, as a debugger may make it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(host.pid)
    try:
        copy = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        pytest.skip(f"pidfd_getfd is refused here: {os.strerror(ctypes.get_errno())}")
    return int(copy)
