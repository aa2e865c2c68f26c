"""Is this process hung, or only starved of CPU?

The *event loop* of every child counts up in shared memory.  We note when **we** last saw the
counter move; no clock crosses a process.  Silence alone proves nothing on a busy host, so it is
charged to the child only as far as the kernel says the child is to blame:

=====================  =======================================================
state of main thread   charged
=====================  =======================================================
runnable               the CPU time it got (a busy loop), not the time it waited
anything else          all of it (blocked in a call, stopped, a zombie)
=====================  =======================================================

One look charges at most ``MAX_STEP_S``: when we ourselves were stopped, or the whole group was, the
children must not pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from .placement import portable

MAX_STEP_S = 0.25
GRACE_S = 0.15
"""Who beat within this time is not asked about: a look reads two files, and beats come late."""
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class CpuSample:
    """What the kernel says about a main thread: can it run, and how long did it run so far?"""

    runnable: bool
    cpu_s: float


class CpuProbe(Protocol):
    """Answers for a pid, or None when there is nothing to see."""

    def __call__(self, pid: int, /) -> CpuSample | None: ...


def cpu_sample(pid: int) -> CpuSample | None:
    """Look at a main thread through ``/proc``, or through psutil where there is none."""
    if portable() or not (_PROC / str(pid)).is_dir():
        return _portable_sample(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
        nanos = (_PROC / str(pid) / "schedstat").read_bytes().split(maxsplit=1)[0]
    except OSError:
        return _portable_sample(pid)
    state = stat.rpartition(b")")[2].split(maxsplit=1)[0]
    return CpuSample(state == b"R", int(nanos) / 1e9)


def _portable_sample(pid: int) -> CpuSample | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return CpuSample(process.status() == psutil.STATUS_RUNNING, times.user + times.system)
    except (psutil.Error, OSError):  # gone, or we have no descriptor left to look with
        return None


class BeatWatch:
    """One child's beat as the supervisor sees it."""

    __slots__ = ("_at", "_count", "_cpu_s", "blamed_s", "moved_at")

    def __init__(self, now: float, count: int = 0) -> None:
        self.moved_at = now
        self.blamed_s = 0.0
        self._count = count
        self._at = now
        self._cpu_s = -1.0

    def look(self, count: int, now: float, pid: int, probe: CpuProbe) -> None:
        """Take one look at the counter; ``probe`` is asked only while it stands still."""
        if count != self._count:
            self._count = count
            self.moved_at = self._at = now
            self.blamed_s = 0.0
            self._cpu_s = -1.0
            return
        if now - self.moved_at < GRACE_S:
            return
        step = min(now - self._at, MAX_STEP_S)
        self._at = now
        sample = probe(pid)
        if sample is None:
            return
        ran = sample.cpu_s - self._cpu_s if self._cpu_s >= 0 else 0.0
        self._cpu_s = sample.cpu_s
        self.blamed_s += min(ran, step) if sample.runnable else step

    def silence_s(self, now: float) -> float:
        """Return how long the counter has stood still, whoever is to blame."""
        return now - self.moved_at
