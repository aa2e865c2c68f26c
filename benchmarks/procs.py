"""Processes under measurement: started on a core, watched until ready, weighed, ended.

Every process leads a group of its own, so that ending it ends what it started, and nothing else.
CPU time is the sum of user and system time over the process and all its descendants; memory is
PSS, so that pages which processes share are counted once.

Known weakness: the CPU time of a descendant that starts and dies between two readings is seen
only by its parent's share of dead children, which is read for the leader alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20


class NotReadyError(Exception):
    """The process died or kept silent; the message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the gateway and the one of everything else; equal when there is only one."""

    gateway: int
    load: int
    pinned: bool

    @classmethod
    def choose(cls) -> Cores:
        """Take the first and the second core this process may use."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(0, 0, pinned=False)
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[min(1, len(allowed) - 1)], pinned=True)

    def for_gateway(self) -> tuple[int, ...]:
        """Answer where the gateway runs, empty where nothing can be pinned."""
        return (self.gateway,) if self.pinned else ()

    def for_load(self) -> tuple[int, ...]:
        """Answer where upstream and load run."""
        return (self.load,) if self.pinned else ()

    def for_both(self) -> tuple[int, ...]:
        """Answer both cores."""
        return (self.gateway, self.load) if self.pinned else ()


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Start what is started inside on these cores: it inherits this process's own affinity."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Answer a loopback port nobody listens on now; another may take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pids: Sequence[int]) -> float:
    """Sum user and system seconds of the given processes; a dead one counts nothing."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def pss(pid: int) -> dict[str, float]:
    """Answer MiB by kind (``total anon file shmem``); RSS as total where PSS is unknown."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        with contextlib.suppress(psutil.Error):
            return {"total": psutil.Process(pid).memory_info().rss / MIB}
        return {}
    names = {"Pss": "total", "Pss_Anon": "anon", "Pss_File": "file", "Pss_Shmem": "shmem"}
    found = re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    return {names[key]: int(kib) / 1024 for key, kib in found if key in names}


class Process:
    """One started program and its descendants."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        cores: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start it with stdout and stderr in ``log``."""
        self.argv = list(argv)
        self.log = log
        self.stopped = False
        with log.open("wb") as out, on_cores(cores):
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    def tail(self, size: int = 800) -> str:
        """Answer the end of the log."""
        text = self.log.read_text(errors="replace").strip()
        return text if len(text) <= size else text[-size:].partition("\n")[2]

    def wait_line(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until a line of the log matches."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE)
            if found:
                return found
            if self.popen.poll() is not None:
                raise NotReadyError(f"exit code {self.popen.returncode}: {self.tail()}")
            time.sleep(0.02)
        raise NotReadyError(f"not ready after {timeout_s:g} s: {self.tail()}")

    def family(self) -> list[psutil.Process]:
        """Answer the process and all its descendants that live now."""
        try:
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []

    def pids(self) -> list[int]:
        """Answer the process ids of the family."""
        return [member.pid for member in self.family()]

    def pss_mib(self) -> float:
        """Sum the PSS of the family."""
        return sum(pss(pid).get("total", 0.0) for pid in self.pids())

    def titles(self) -> dict[int, str]:
        """Answer pid -> first word of the command line, which is the title where one is set."""
        found = {}
        for member in self.family():
            with contextlib.suppress(psutil.Error):
                found[member.pid] = " ".join(member.cmdline()[:1]) or member.name()
        return found

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the group to end, then end it, then any descendant that left it; once is enough."""
        if self.stopped:
            return
        self.stopped = True
        family = self.family()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(grace_s)
        self._signal(signal.SIGKILL)
        self.popen.wait(grace_s)
        # psutil compares creation times, so a reused process id is left alone.
        for member in family:
            with contextlib.suppress(psutil.Error):
                if member.is_running():
                    member.kill()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
