"""Reads a machine from the ``sys`` and ``proc`` trees of Linux.

All paths are below ``root``, so that a recorded machine is read like a live one.

Invariant: a file that is missing or unreadable costs its fact and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tpo_mp.supervisor import memory_room, placement
from tpo_mp.supervisor.pinning import Core

from .machine import CoreKind, CpuCache, Machine, MemoryNode

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_KINDS = (("performance", "cpu_core"), ("efficiency", "cpu_atom"))


def read(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> Machine:
    """Read a machine; ``allowed`` is the affinity mask, every CPU online when left out."""
    cpu_dir, groups = root / "sys/devices/system/cpu", root / "sys/fs/cgroup"
    own = root / "proc/self/cgroup"
    folders = {int(f.name[3:]): f for f in cpu_dir.glob("cpu[0-9]*") if f.name[3:].isdigit()}
    online = placement.parse_cpu_list(_text(cpu_dir / "online")) or tuple(sorted(folders)) or (0,)
    cpuset = _cpuset(groups, own)
    mine = set(online if allowed is None else allowed)
    if cpuset and allowed is None:
        mine &= set(cpuset)
    caches = _caches(folders[cpu] for cpu in sorted(mine) if cpu in folders)
    nodes = _nodes(root / "sys/devices/system/node", mine)
    node_of = {cpu: node.number for node in nodes for cpu in node.cpus}
    return Machine(
        system="linux",
        model=_model(root / "proc/cpuinfo"),
        online=len(online),
        cores=_cores(folders, mine, node_of, caches),
        sockets=_sockets(folders.values()),
        nodes=nodes,
        caches=caches,
        kinds=_kinds(root / "sys/devices", mine),
        memory_bytes=_meminfo(root / "proc/meminfo"),
        memory_limit_bytes=memory_room.limit_bytes(groups, own),
        quota_cpus=placement.quota_cpus(groups, own),
        cpuset=cpuset,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _cores(
    folders: dict[int, Path],
    mine: set[int],
    node_of: dict[int, int],
    caches: tuple[CpuCache, ...],
) -> tuple[Core, ...]:
    last = max((cache.level for cache in caches), default=0)
    shared = {cpu: min(c.cpus) for c in caches if c.level == last for cpu in c.cpus}
    left = set(mine)
    found: list[Core] = []
    for cpu in sorted(mine):
        if cpu in left:
            topology = folders.get(cpu, Path("/nowhere")) / "topology"
            listed = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
            threads = tuple(c for c in placement.parse_cpu_list(listed) if c in left)
            threads = threads if cpu in threads else (cpu,)
            left.difference_update(threads)
            found.append(Core(threads, node_of.get(cpu, 0), shared.get(cpu, 0)))
    return tuple(found)


def _sockets(folders: Iterable[Path]) -> int | None:
    packages = {_number(folder / "topology/physical_package_id") for folder in folders}
    return len(packages - {None, -1}) or None


def _caches(folders: Iterable[Path]) -> tuple[CpuCache, ...]:
    found: dict[tuple[int, str, tuple[int, ...]], CpuCache] = {}
    for folder in folders:
        for index in sorted(folder.glob("cache/index[0-9]*")):
            level, kind = _number(index / "level"), _text(index / "type").lower()
            cpus = placement.parse_cpu_list(_text(index / "shared_cpu_list"))
            size = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
            if level is None or size is None or not cpus:
                continue
            bytes_ = int(size[1]) * _UNITS[size[2]]
            found.setdefault((level, kind, cpus), CpuCache(level, kind, bytes_, cpus))
    return tuple(found[key] for key in sorted(found))


def _nodes(folder: Path, mine: set[int]) -> tuple[MemoryNode, ...]:
    nodes = []
    for node in folder.glob("node[0-9]*"):
        cpus = placement.parse_cpu_list(_text(node / "cpulist"))
        memory = _meminfo(node / "meminfo")
        number = int(node.name.removeprefix("node"))
        nodes.append(MemoryNode(number, tuple(c for c in cpus if c in mine), memory))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _kinds(devices: Path, mine: set[int]) -> tuple[CoreKind, ...]:
    found = []
    for name, device in _KINDS:
        listed = placement.parse_cpu_list(_text(devices / device / "cpus"))
        cpus = tuple(cpu for cpu in listed if cpu in mine)
        if cpus:
            siblings = devices / "system/cpu"
            cores = {_text(siblings / f"cpu{c}/topology/core_cpus_list") or str(c) for c in cpus}
            found.append(CoreKind(name, len(cores), cpus))
    return tuple(found)


def _meminfo(path: Path) -> int | None:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(path))
    return int(found[1]) * 1024 if found else None


def _model(path: Path) -> str:
    found = re.search(r"^(?:model name|Model|Processor)\s*:\s*(.+)$", _text(path), re.MULTILINE)
    return found[1].strip() if found else ""


def _cpuset(groups: Path, own: Path) -> tuple[int, ...] | None:
    """What the innermost group allows; ``None`` when nobody says."""
    allowed = None
    for folder in placement.cgroup_folders(groups, own, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if cpus := placement.parse_cpu_list(_text(folder / name)):
                allowed = cpus if allowed is None or len(cpus) < len(allowed) else allowed
                break
    return allowed
