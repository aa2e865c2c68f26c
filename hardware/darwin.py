"""Reads a Mac from what ``sysctl -a`` says: kinds of cores, their caches, one memory for all.

CPUs have no numbers that a process could be bound to there; those here only count cores.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from tpo_mp.supervisor.pinning import Core

from .machine import CoreKind, CpuCache, Gpu, Machine

_WAIT_S = 5.0


def read() -> Machine:
    """Read this Mac; one that does not answer is a machine without facts."""
    try:
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False, timeout=_WAIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return Machine(system="darwin", cores=(Core((0,)),))
    return parse(asked.stdout)


def parse(text: str) -> Machine:
    """Build a machine from lines of ``name: value``."""
    said = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    logical = _number(said, "hw.logicalcpu") or _number(said, "hw.ncpu") or 1
    physical = _number(said, "hw.physicalcpu") or logical
    threads = max(1, logical // physical)
    cores = tuple(
        Core(tuple(range(core * threads, (core + 1) * threads))) for core in range(physical)
    )
    model = said.get("machdep.cpu.brand_string", "").strip()
    memory = _number(said, "hw.memsize")
    own_gpu = model.startswith("Apple")
    return Machine(
        system="darwin",
        model=model,
        online=logical,
        cores=cores,
        sockets=_number(said, "hw.packages"),
        kinds=_kinds(said),
        memory_bytes=memory,
        gpus=(Gpu(0, model, memory, unified=True),) if own_gpu else (),
    )


def _kinds(said: Mapping[str, str]) -> tuple[CoreKind, ...]:
    kinds, first = [], 0
    for level in range(_number(said, "hw.nperflevels") or 0):
        about = f"hw.perflevel{level}"
        count = _number(said, f"{about}.logicalcpu") or _number(said, f"{about}.physicalcpu") or 0
        if not count:
            continue
        cpus = tuple(range(first, first + count))
        first += count
        name = said.get(f"{about}.name", "performance" if level == 0 else "efficiency")
        cores = _number(said, f"{about}.physicalcpu") or count
        kinds.append(CoreKind(name.strip().lower(), cores, cpus, _caches(said, about, cpus)))
    return tuple(kinds)


def _caches(said: Mapping[str, str], about: str, cpus: tuple[int, ...]) -> tuple[CpuCache, ...]:
    caches = []
    for level, kind, name in ((1, "data", "l1dcachesize"), (1, "instruction", "l1icachesize")):
        if size := _number(said, f"{about}.{name}"):
            caches += [CpuCache(level, kind, size, (cpu,)) for cpu in cpus]
    sharing = _number(said, f"{about}.cpusperl2") or 1
    if size := _number(said, f"{about}.l2cachesize"):
        groups = [cpus[n : n + sharing] for n in range(0, len(cpus), sharing)]
        caches += [CpuCache(2, "unified", size, group) for group in groups]
    return tuple(caches)


def _number(said: Mapping[str, str], name: str) -> int | None:
    text = said.get(name, "").strip()
    return int(text) if text.isdigit() else None
