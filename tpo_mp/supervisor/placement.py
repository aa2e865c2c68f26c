"""Which CPUs this process group may use, and which one each slot gets.

Pinning is a courtesy: where it is impossible (macOS, the portable mode) or unwise (a CPU quota,
more workers than CPUs) every slot gets ``UNPINNED`` and the house runs on.

Invariants: no CPU outside the inherited affinity mask is ever chosen; one CPU serves one slot.
Known weakness: two instances on one host choose the same CPUs unless their masks differ.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import psutil

from tpo_mp.config.engines import EngineSection

from .pinning import UNPINNED, Core, EngineNeed, PinningPlan, assign, deal_rest, unpinned

__all__ = [
    "CGROUP", "OWN_CGROUP", "UNPINNED", "allowed_cpus", "auto_workers", "balances", "beside",
    "bus_node", "can_pin", "cgroup_folders", "cores", "cores_first", "deal", "gpu_nodes", "more",
    "needs_of", "parse_cpu_list", "pin", "plan", "portable", "quota_cpus", "siblings",
]  # fmt: skip

_SHOWN = os.environ.get("TPO_SYSTEM_ROOT", "/") if os.environ.get("TPO_TEST") == "1" else "/"
_ROOT = Path(_SHOWN)
"""Where ``sys`` and ``proc`` lie; tests may show another machine (``TPO_TEST=1`` only)."""
_CPU_DIR = _ROOT / "sys/devices/system/cpu"
CGROUP = _ROOT / "sys/fs/cgroup"
OWN_CGROUP = _ROOT / "proc/self/cgroup"


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
        found = parse_cpu_list(text)
    except (OSError, ValueError):
        return (cpu,)
    return found if cpu in found else (cpu,)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list form, ``0-3,8``; what is no such list is an empty one."""
    cpus: list[int] = []
    try:
        for part in filter(None, text.strip().split(",")):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        return ()
    return tuple(cpus)


def cores_first(cpus: list[int], shared: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Order ``cpus`` so that no core is used twice before every core is used once."""
    rank = {cpu: [other for other in shared[cpu] if other in shared].index(cpu) for cpu in cpus}
    return tuple(sorted(cpus, key=lambda cpu: (rank[cpu], cpu)))


def cores(folder: Path = _CPU_DIR) -> tuple[Core, ...]:
    """The cores of the allowed CPUs, with their memory node and last-level cache."""
    left = set(allowed_cpus())
    found: list[Core] = []
    for cpu in sorted(left):
        if cpu in left:
            threads = tuple(other for other in siblings(cpu) if other in left)
            left.difference_update(threads)
            here = folder / f"cpu{cpu}"
            found.append(Core(threads, _node(here), _last_cache(here, cpu)))
    return tuple(found)


def _node(folder: Path) -> int:
    node = next(iter(folder.glob("node[0-9]*")), None)
    return int(node.name.removeprefix("node")) if node else 0


def _last_cache(folder: Path, cpu: int) -> int:
    """The lowest CPU that shares the largest cache: the name of that cache."""
    levels: list[tuple[int, int]] = []
    for index in folder.glob("cache/index[0-9]*"):
        try:
            shared = parse_cpu_list((index / "shared_cpu_list").read_text())
            levels.append((int((index / "level").read_text()), min(shared, default=cpu)))
        except (OSError, ValueError):
            continue
    return max(levels, default=(0, 0))[1]


def quota_cpus(root: Path = CGROUP, own: Path = OWN_CGROUP) -> float | None:
    """Return the CPU quota in CPUs, or None when there is none (cgroup versions 2 and 1).

    The least of those from this process's own group up to the root, since each of them holds.
    """
    quotas = [quota for folder in cgroup_folders(root, own, "cpu") if (quota := _quota(folder))]
    return min(quotas, default=None)


def cgroup_folders(root: Path, own: Path, controller: str) -> list[Path]:
    """Where a controller's files of this process's group and of those above it may lie."""
    folders: list[Path] = [root, root / controller]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            bases = [root, root / "unified"]
        elif controller in controllers.split(","):
            bases = [root / controller, root / controllers]
        else:
            continue
        steps = [part for part in path.split("/") if part not in {"", ".."}]
        # A container may see its own group as the root: then the longer paths are not there.
        folders += [base.joinpath(*steps[:n]) for base in bases for n in range(len(steps) + 1)]
    return list(dict.fromkeys(folders))


def _quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return micros / period_us if micros > 0 and period_us > 0 else None


def auto_workers() -> int:
    """Return how many workers this host feeds: its CPUs, or the quota where that is less."""
    quota = quota_cpus()
    count = len(allowed_cpus())
    return max(1, count if quota is None else min(count, round(quota)))


def needs_of(engines: Sequence[EngineSection], root: Path = _ROOT) -> list[EngineNeed]:
    """Say what the engines of a configuration ask for, and near which memory node."""
    nodes = gpu_nodes(root) if engines else {}
    return [EngineNeed(engine.name, engine.cores, _home(engine.gpus, nodes)) for engine in engines]


def _home(gpus: Sequence[int], nodes: Mapping[int, int]) -> int | None:
    """The node of most of an engine's GPUs, of its first ones; an engine without a list has all."""
    seen = [nodes[gpu] for gpu in gpus or nodes if gpu in nodes]
    if not gpus and len(set(seen)) > 1:
        return None
    return max(seen, key=seen.count, default=None)


def gpu_nodes(root: Path = _ROOT) -> dict[int, int]:
    """The memory node of each NVIDIA GPU, where the kernel knows it, numbered by their buses."""
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    found = ((index, bus_node(root, folder.name)) for index, folder in enumerate(folders))
    return {index: node for index, node in found if node is not None}


def bus_node(root: Path, bus: str) -> int | None:
    """The memory node that a PCI bus hangs on; ``None`` where nobody says."""
    address = bus.lower()[-12:]  # the driver writes eight digits of the domain, the kernel four
    try:
        node = int((root / "sys/bus/pci/devices" / address / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def beside(engines: Sequence[EngineNeed], cores: int, auto: int) -> int:
    """How many workers leave room for engines: those that say no number have half of the cores."""
    if not engines:
        return auto
    asked = sum(need.cores for need in engines)
    open_ended = any(not need.cores for need in engines)
    kept = (cores - asked) // 2 if open_ended else cores - asked
    return max(1, min(auto, kept))


def plan(workers: int) -> tuple[int, ...]:
    """Return the CPU of each slot, or ``UNPINNED`` for all."""
    return deal(workers).slots


def deal(workers: int, engines: Sequence[EngineNeed] = ()) -> PinningPlan:
    """Deal this machine's cores out to workers and engines.

    A quota means a container: it sees every CPU of the host, and so do its neighbours, which
    would all pick the same ones.
    """
    quota = quota_cpus()
    if not can_pin():
        return unpinned(workers, engines, "cannot pin here")
    if quota is not None and quota < len(allowed_cpus()):
        return unpinned(workers, engines, "off: a CPU quota, so others may be on any of the CPUs")
    return assign(cores(), workers, engines)


def more(
    plan: PinningPlan,
) -> Callable[[EngineSection, Mapping[str, tuple[int, ...]]], tuple[int, ...]] | None:
    """How an engine that comes later gets what is left beside ``plan``; None: nobody is bound."""
    if not plan.pinned:
        return None

    def find(engine: EngineSection, others: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        taken = {*plan.slots, *(cpu for cpus in others.values() for cpu in cpus)}
        return deal_rest(cores(), taken, needs_of([engine]))[engine.name]

    return find


def pin(pid: int, cpu: int) -> bool:
    """Bind a process to ``cpu``; False when that is impossible, which is no error."""
    if cpu == UNPINNED or not can_pin():
        return False
    try:
        psutil.Process(pid).cpu_affinity([cpu])
    except (psutil.Error, OSError, ValueError):
        return False
    return True
