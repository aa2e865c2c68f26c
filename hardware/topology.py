"""What this machine offers a process group, and where workers and engines go: ``tpo-mp topology``.

It describes what ``hardware.linux``, ``hardware.darwin`` and ``hardware.gpus`` read, and draws the
plan of ``tpo_mp.supervisor.placement``, which is the one that a gateway follows.

Invariant: an absent fact is left out or "cannot pin here", never an error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from tpo_mp.config.load import load
from tpo_mp.errors import ExitCode
from tpo_mp.supervisor import placement
from tpo_mp.supervisor.pinning import Core, EngineNeed, PinningPlan

from . import darwin, gpus, linux
from .machine import CpuCache, Gpu, Machine

_PER_LINE = 8
_ENGINE = re.compile(r"([A-Za-z0-9._-]{1,64})(?:=(\d{1,4}))?(?:@gpu(\d{1,2}))?")


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine and the plan for ``workers`` slots and some engines on it."""

    machine: Machine
    workers: int
    plan: PinningPlan

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        plan = {"slots": list(self.plan.slots), "engines": dict(self.plan.engines)}
        return {
            "machine": asdict(self.machine) | {"cpus": self.machine.cpus},
            "workers": self.workers,
            "plan": plan | {"pinned": self.plan.pinned, "reason": self.plan.reason},
        }


def look() -> Machine:
    """Read this machine."""
    if sys.platform == "darwin":
        return darwin.read()
    return replace(linux.read(allowed=placement.allowed_cpus()), gpus=gpus.read())


def describe(workers: int | None = None, engines: Sequence[EngineNeed] = ()) -> Topology:
    """Look at this machine; ``workers`` None means as many as ``auto`` would start."""
    count = placement.auto_workers() if workers is None else workers
    return Topology(look(), count, placement.deal(count, engines))


def draw(seen: Topology) -> str:
    """Return the description as lines for people; every core is a cell with who is put on it."""
    machine, plan = seen.machine, seen.plan
    return "\n".join([
        f"machine   {' '.join(filter(None, [machine.system, machine.model]))}",
        *_counts(machine),
        *_kinds(machine),
        *_drawn_cores(machine, _owners(plan)),
        *(f"gpu {gpu.index:<5} {_gpu(gpu)}" for gpu in machine.gpus),
        f"workers   {seen.workers}",
        f"pinning   {plan.reason}",
        *(f"engine    {name}: cpus {_listed(cpus)}" for name, cpus in plan.engines.items() if cpus),
    ])  # fmt: skip


def _counts(machine: Machine) -> list[str]:
    sockets = f" on {machine.sockets} sockets" if (machine.sockets or 1) > 1 else ""
    threads = f" of {machine.threads} threads" if machine.threads > 1 else ""
    memory = _size(machine.memory_bytes) if machine.memory_bytes else "unknown"
    if machine.memory_limit_bytes:
        memory += f", limited to {_size(machine.memory_limit_bytes)}"
    quota = "none" if machine.quota_cpus is None else f"{machine.quota_cpus:g} CPUs"
    lines = [
        f"cpus      {_listed(machine.cpus)} ({len(machine.cpus)} of {machine.online})",
        f"cores     {len(machine.cores)}{threads}{sockets}",
        f"memory    {memory}",
        f"quota     {quota}",
    ]
    if machine.cpuset is not None and len(machine.cpuset) < machine.online:
        lines.append(f"cpuset    {_listed(machine.cpuset)}")
    if caches := _summed(machine.caches):
        lines.append(f"caches    {caches}")
    return lines


def _kinds(machine: Machine) -> list[str]:
    lines = []
    for kind in machine.kinds:
        caches = _summed(kind.caches)
        lines.append(f"kind      {kind.cores} {kind.name}{': ' if caches else ''}{caches}")
    return lines


def _summed(caches: Sequence[CpuCache]) -> str:
    """``L1d 8 x 32 KiB, …``: caches of one level and size are one entry."""
    counted: dict[str, int] = {}
    for cache in caches:
        mark = {"data": "d", "instruction": "i"}.get(cache.type, "")
        name = f"L{cache.level}{mark} {{}} x {_size(cache.size_bytes)}"
        counted[name] = counted.get(name, 0) + 1
    return ", ".join(name.format(count) for name, count in counted.items())


def _drawn_cores(machine: Machine, owners: dict[int, str]) -> list[str]:
    lines = []
    memory = {node.number: node.memory_bytes for node in machine.nodes}
    for node in sorted({core.node for core in machine.cores}):
        mine = [core for core in machine.cores if core.node == node]
        size = memory.get(node)
        lines.append(f"node {node:<4} {len(mine)} cores{f', {_size(size)}' if size else ''}")
        for cache in sorted({core.cache for core in mine}):
            group = [core for core in mine if core.cache == cache]
            cells = [_cell(core, owners) for core in group]
            for first in range(0, len(cells), _PER_LINE):
                lead = "    | " if first else "    + "
                lines.append(lead + " ".join(cells[first : first + _PER_LINE]))
    return lines


def _cell(core: Core, owners: dict[int, str]) -> str:
    whose = [owners.get(cpu, "") for cpu in core.cpus]
    marks = whose[0] if len(set(whose)) == 1 else "/".join(mark or "-" for mark in whose)
    return f"[{','.join(str(cpu) for cpu in core.cpus)}{' ' if marks else ''}{marks}]"


def _owners(plan: PinningPlan) -> dict[int, str]:
    if not plan.pinned:
        return {}
    return {cpu: f"slot{slot}" for slot, cpu in enumerate(plan.slots)} | {
        cpu: name for name, cpus in plan.engines.items() for cpu in cpus
    }


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name or "unknown"]
    if gpu.memory_bytes:
        parts.append(_size(gpu.memory_bytes) + (" of the machine's own" if gpu.unified else ""))
    if gpu.node is not None:
        parts.append(f"node {gpu.node}")
    return ", ".join(parts)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count / 1024:.4g} KiB"


def _listed(cpus: Sequence[int]) -> str:
    """The kernel's list form, ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs) or "none"


def needs(engines: Sequence[str], machine: Machine) -> list[EngineNeed]:
    """Read ``NAME[=CORES][@gpuN]``; raises ``UsageError`` for anything else."""
    wanted: dict[str, EngineNeed] = {}
    nodes = {gpu.index: gpu.node for gpu in machine.gpus}
    for text in engines:
        found = _ENGINE.fullmatch(text)
        if found is None:
            raise click.UsageError(f"--engine {text!r}: expected NAME, NAME=CORES or NAME=8@gpu0")
        name, cores, gpu = found.groups()
        if name in wanted:
            raise click.UsageError(f"--engine {name}: named twice")
        if gpu is not None and int(gpu) not in nodes:
            known = ", ".join(f"gpu{index}" for index in nodes) or "none"
            raise click.UsageError(f"--engine {text!r}: no such GPU here; there are: {known}")
        wanted[name] = EngineNeed(name, int(cores or 0), nodes[int(gpu)] if gpu else None)
    return list(wanted.values())


@click.command()
@click.option("--workers", type=click.IntRange(1, 4096), help="Plan for so many [as `auto` would].")
@click.option("--engine", "engines", multiple=True, metavar="NAME[=CORES][@gpuN]",
              help="Plan for an engine beside them; may be given several times.")  # fmt: skip
@click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plan for the workers and engines of this configuration.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
def topology(
    workers: int | None, engines: tuple[str, ...], config_path: Path | None, as_json: bool
) -> int:
    """Draw this machine: cores, caches, memory nodes, GPUs, and who is put where."""
    machine = look()
    wanted = needs(engines, machine)
    if config_path is not None:
        config = load(config_path, {}, os.environ)
        named = {need.name for need in wanted}
        # What the command line says of an engine comes before what the file says.
        wanted += [n for n in placement.needs_of(config.engines) if n.name not in named]
        if workers is None and config.server.workers != "auto":
            workers = config.server.workers
    if workers is None:
        workers = placement.beside(wanted, len(machine.cores), placement.auto_workers())
    seen = Topology(machine, workers, placement.deal(workers, wanted))
    click.echo(json.dumps(seen.as_json(), indent=2) if as_json else draw(seen))
    return ExitCode.OK
