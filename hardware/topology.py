"""What this machine offers a process group, and where its workers would go: ``tpo-mp topology``.

Built on ``tpo_mp.supervisor.placement``, which decides; this file only describes.

Invariant: an absent fact is None or "cannot pin here", never an error.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tpo_mp.supervisor import placement

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class Topology:
    """CPUs inside the inherited affinity mask, and the plan for ``workers`` slots."""

    cpus: tuple[int, ...]
    online: int
    cores: tuple[tuple[int, ...], ...]
    nodes: dict[int, tuple[int, ...]]
    quota_cpus: float | None
    workers: int
    plan: tuple[int, ...]
    pinning: str


def describe(workers: int | None = None) -> Topology:
    """Look at this machine; ``workers`` None means as many as ``auto`` would start."""
    cpus = placement.allowed_cpus()
    count = workers or placement.auto_workers()
    plan = placement.plan(count)
    return Topology(
        cpus=cpus,
        online=os.cpu_count() or len(cpus),
        cores=tuple(sorted({placement.siblings(cpu) for cpu in cpus})),
        nodes=numa_nodes(_NODES, cpus),
        quota_cpus=placement.quota_cpus(),
        workers=count,
        plan=plan,
        pinning=_pinning(plan),
    )


def numa_nodes(root: Path, cpus: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Return the allowed CPUs of every memory node; empty where the kernel does not say."""
    nodes = {}
    for folder in sorted(root.glob("node[0-9]*")):
        try:
            listed = placement.parse_cpu_list((folder / "cpulist").read_text())
        except OSError:
            continue
        nodes[int(folder.name.removeprefix("node"))] = tuple(c for c in listed if c in cpus)
    return nodes


def report(workers: int | None = None) -> str:
    """Return the description as lines for people."""
    seen = describe(workers)
    quota = "none" if seen.quota_cpus is None else f"{seen.quota_cpus:g} CPUs"
    lines = [
        f"platform  {sys.platform}",
        f"cpus      {_listed(seen.cpus)} of {seen.online}",
        f"cores     {len(seen.cores)}",
        *(f"node {node:<4} cpus {_listed(cpus)}" for node, cpus in seen.nodes.items()),
        f"quota     {quota}",
        f"workers   {seen.workers}",
        f"pinning   {seen.pinning}",
    ]
    if placement.UNPINNED not in seen.plan:
        lines += [f"slot {slot:<4} cpu {cpu}" for slot, cpu in enumerate(seen.plan)]
    return "\n".join(lines)


def _pinning(plan: tuple[int, ...]) -> str:
    if not placement.can_pin():
        return "cannot pin here"
    if placement.UNPINNED in plan:
        return "off: fewer CPUs than workers, or a CPU quota"
    return "one CPU per worker"


def _listed(cpus: tuple[int, ...]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus)) or "none"
