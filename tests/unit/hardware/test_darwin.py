"""Macs, by what ``sysctl -a`` says of them."""

from __future__ import annotations

import pytest

from hardware import darwin
from hardware.topology import Topology, draw
from tests.support.machines import RECORDED
from tpo_mp.supervisor.pinning import unpinned

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "kinds", "memory_gib", "second_level"),
    [("macos_m1", {"performance": 4, "efficiency": 4}, 16, {"performance": 1, "efficiency": 1}),
     ("macos_m2_max", {"performance": 8, "efficiency": 4}, 64,
      {"performance": 2, "efficiency": 1})],
)  # fmt: skip
def test_kinds_of_cores_and_unified_memory_are_read(
    name: str, kinds: dict[str, int], memory_gib: int, second_level: dict[str, int]
) -> None:
    """Clusters share a cache; the GPU uses the machine's own memory."""
    machine = darwin.parse((RECORDED / f"{name}.sysctl").read_text())
    assert {kind.name: kind.cores for kind in machine.kinds} == kinds
    assert machine.memory_bytes == memory_gib * GIB
    assert [(gpu.unified, gpu.memory_bytes) for gpu in machine.gpus] == [(True, memory_gib * GIB)]
    found = {k.name: sum(c.level == 2 for c in k.caches) for k in machine.kinds}
    assert found == second_level
    drawn = draw(Topology(machine, 4, unpinned(4, (), "cannot pin here")))
    assert f"{kinds['performance']} performance" in drawn
    assert "cannot pin here" in drawn
    assert "slot" not in drawn


def test_an_intel_mac_has_threads_and_no_kinds() -> None:
    """Six cores of two threads, and no GPU that shares their memory."""
    machine = darwin.parse((RECORDED / "macos_intel.sysctl").read_text())
    assert (len(machine.cores), machine.threads) == (6, 2)
    assert machine.kinds == machine.gpus == ()


@pytest.mark.parametrize("text", ["", "hw.ncpu: many\n", "rubbish\n: \n", "hw.physicalcpu: 0\n"])
def test_rubbish_is_a_machine_without_facts(text: str) -> None:
    """Never an error."""
    assert darwin.parse(text).cpus == (0,)
