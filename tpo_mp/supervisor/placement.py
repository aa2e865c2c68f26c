"""Which CPUs this process group may use, and which one each slot gets.

Pinning is a courtesy: where it is impossible (macOS, the portable mode) or unwise (a CPU quota,
more workers than CPUs) every slot gets ``UNPINNED`` and the house runs on.

Invariants: no CPU outside the inherited affinity mask is ever chosen; one CPU serves one slot.
Known weakness: two instances on one host choose the same CPUs unless their masks differ.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import psutil

UNPINNED = -1

_CPU_DIR = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def portable() -> bool:
    """Say whether the host asked for the non-Linux paths."""
    return os.environ.get("TPO_PORTABLE") == "1"


def can_pin() -> bool:
    """Say whether a process can be bound to a CPU here."""
    return hasattr(psutil.Process, "cpu_affinity") and not portable()


def balances() -> bool:
    """Say whether the kernel spreads connections over ``SO_REUSEPORT`` sockets."""
    return sys.platform == "linux" and not portable()


@cache
def allowed_cpus() -> tuple[int, ...]:
    """List the CPUs of the inherited affinity mask, one thread of every core first."""
    if can_pin():
        cpus = list(psutil.Process().cpu_affinity())
    else:
        cpus = list(range(os.cpu_count() or 1))
    return cores_first(sorted(cpus), {cpu: siblings(cpu) for cpu in cpus})


def siblings(cpu: int) -> tuple[int, ...]:
    """List the hardware threads that share a core with ``cpu``, itself included."""
    try:
        text = (_CPU_DIR / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return (cpu,)
    return parse_cpu_list(text) or (cpu,)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list form, ``0-3,8``."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def cores_first(cpus: list[int], shared: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Order ``cpus`` so that no core is used twice before every core is used once."""
    rank = {cpu: [other for other in shared[cpu] if other in shared].index(cpu) for cpu in cpus}
    return tuple(sorted(cpus, key=lambda cpu: (rank[cpu], cpu)))


def quota_cpus(root: Path = _CGROUP) -> float | None:
    """Return the cgroup's CPU quota in CPUs, or None when there is none (versions 2 and 1)."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return micros / period_us if micros > 0 and period_us > 0 else None


def auto_workers() -> int:
    """Return how many workers this host feeds: its CPUs, or the quota where that is less."""
    quota = quota_cpus()
    count = len(allowed_cpus())
    return max(1, count if quota is None else min(count, round(quota)))


def plan(workers: int) -> tuple[int, ...]:
    """Return the CPU of each slot, or ``UNPINNED`` for all.

    A quota means a container: it sees every CPU of the host, and so do its neighbours, which
    would all pick the same ones.
    """
    cpus = allowed_cpus()
    quota = quota_cpus()
    confined = quota is not None and quota < len(cpus)
    if not can_pin() or confined or workers > len(cpus):
        return (UNPINNED,) * workers
    return cpus[:workers]


def pin(pid: int, cpu: int) -> bool:
    """Bind a process to ``cpu``; False when that is impossible, which is no error."""
    if cpu == UNPINNED or not can_pin():
        return False
    try:
        psutil.Process(pid).cpu_affinity([cpu])
    except (psutil.Error, OSError, ValueError):
        return False
    return True
