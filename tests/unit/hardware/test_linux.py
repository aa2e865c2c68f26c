"""Recorded machines, read from their trees like live ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hardware import gpus, linux
from hardware.machine import Machine
from tests.support.machines import unfold
from tpo_mp.supervisor import placement
from tpo_mp.supervisor.pinning import EngineNeed, assign

GIB = 1 << 30

Recorded = Callable[[str], Machine]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """Reads a machine by the name of its recording."""
    return lambda name: linux.read(unfold(name, tmp_path))


@pytest.mark.parametrize(
    ("name", "online", "cores", "threads", "sockets", "nodes"),
    [
        ("one_cpu", 1, 1, 1, 1, 1),
        ("two_cpus", 2, 2, 1, 1, 1),
        ("hybrid", 8, 6, 2, 1, 1),
        ("two_sockets_alternating", 64, 32, 2, 2, 2),
        ("two_sockets_256", 256, 128, 2, 2, 2),
    ],
)
def test_cores_threads_sockets_and_nodes_are_counted(
    recorded: Recorded, name: str, online: int, cores: int, threads: int, sockets: int, nodes: int
) -> None:
    """From one CPU to 256."""
    machine = recorded(name)
    assert machine.online == len(machine.cpus) == online
    assert (len(machine.cores), machine.threads) == (cores, threads)
    assert (machine.sockets, len(machine.nodes)) == (sockets, nodes)
    assert machine.model
    assert machine.quota_cpus is None
    assert machine.memory_limit_bytes is None


def test_the_caches_of_a_large_machine_are_shared_by_eight_cores(recorded: Recorded) -> None:
    """Sixteen of the last level, 32 MiB each, and one of the second for every core."""
    machine = recorded("two_sockets_256")
    last = [cache for cache in machine.caches if cache.level == 3]
    assert [cache.size_bytes for cache in last] == [32 << 20] * 16
    assert {len(cache.cpus) for cache in last} == {16}
    assert len({core.cache for core in machine.cores}) == 16
    assert sum(cache.level == 2 for cache in machine.caches) == 128
    assert [node.memory_bytes for node in machine.nodes] == [528249856 * 1024] * 2


@pytest.mark.parametrize("name", ["container_v2", "container_v1"])
def test_a_container_has_what_its_groups_leave_it(recorded: Recorded, name: str) -> None:
    """Two cores by the cpuset, a quota and a limit of memory, under either version of cgroups."""
    machine = recorded(name)
    assert machine.cpus == machine.cpuset == (4, 5, 6, 7)
    assert [core.cpus for core in machine.cores] == [(4, 5), (6, 7)]
    assert machine.online == 16
    assert machine.quota_cpus == 2.5
    assert machine.memory_limit_bytes == 4 * GIB


def test_kinds_of_cores_are_told_apart(recorded: Recorded) -> None:
    """Performance cores have two threads, efficiency cores one."""
    kinds = {kind.name: (kind.cores, len(kind.cpus)) for kind in recorded("hybrid").kinds}
    assert kinds == {"performance": (2, 4), "efficiency": (4, 4)}


def test_workers_and_an_engine_on_a_large_machine_keep_to_a_node_each(tmp_path: Path) -> None:
    """The engine next to its GPU, on whole caches; eight workers on the other node's first ones."""
    root = unfold("two_sockets_256", tmp_path)
    machine = linux.read(root)
    found = gpus.parse_smi((root / "nvidia-smi").read_text(), root)
    assert [gpu.node for gpu in found] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found[0].memory_bytes == 81920 << 20
    plan = assign(machine.cores, 8, [EngineNeed("big", 16, found[0].node)])
    of = {cpu: core for core in machine.cores for cpu in core.cpus}
    assert {of[cpu].node for cpu in plan.engines["big"]} == {0}
    assert len({of[cpu].cache for cpu in plan.engines["big"]}) == 2
    assert {of[cpu].node for cpu in plan.slots} == {1}
    assert len({of[cpu].cache for cpu in plan.slots}) == 1


def test_workers_share_a_node_though_its_numbers_alternate(recorded: Recorded) -> None:
    """CPUs 0, 1, 2 … lie on the two sockets in turn."""
    machine = recorded("two_sockets_alternating")
    assert assign(machine.cores, 6).slots == (0, 2, 4, 6, 8, 10)


def test_a_driver_without_its_tools_still_names_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the folder it shows under ``proc``."""
    monkeypatch.setattr(gpus, "by_nvml", lambda root: ())
    monkeypatch.setattr(gpus, "by_smi", lambda root: ())
    found = gpus.read(unfold("two_sockets_alternating", tmp_path))
    assert [(gpu.name, gpu.node) for gpu in found] == [("Tesla T4", 0), ("Tesla T4", 1)]


def test_a_machine_that_shows_nothing_has_one_cpu(tmp_path: Path) -> None:
    """No file is there, and nothing is raised; nor is it by files that hold rubbish."""
    assert linux.read(tmp_path).cpus == (0,)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_bytes(b"\xff\xfe MemTotal: many kB")
    index = tmp_path / "sys/devices/system/cpu/cpu0/cache/index0"
    index.mkdir(parents=True)
    for file in ("level", "size", "shared_cpu_list"):
        (index / file).write_text("?" if file != "shared_cpu_list" else "\n")
    assert linux.read(tmp_path).memory_bytes is None


def test_the_supervisors_plan_and_the_description_know_the_same_cores() -> None:
    """On this machine, live."""
    machine = linux.read(allowed=placement.allowed_cpus())
    assert set(machine.cpus) == set(placement.allowed_cpus())
    assert {core.cpus for core in machine.cores} == {core.cpus for core in placement.cores()}
    assert {core.node for core in machine.cores} == {core.node for core in placement.cores()}


def test_a_machine_that_contradicts_itself_has_every_cpu_once(tmp_path: Path) -> None:
    """Sandboxes and emulators write what they like."""
    for cpu, text in enumerate(("0-1", "1", "1-2", "(null)", "0")):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text)
    machine = linux.read(tmp_path)
    assert machine.cpus == (0, 1, 2, 3, 4)
    assert [core.cpus for core in machine.cores] == [(0, 1), (2,), (3,), (4,)]


def test_a_driver_that_breaks_in_the_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other ways are tried."""

    class Broken:
        @staticmethod
        def nvmlInit() -> None:
            """It begins well."""

        def __getattr__(self, name: str) -> Callable[..., int]:
            raise OSError(f"{name}: the library was unloaded")

    monkeypatch.setitem(sys.modules, "pynvml", Broken())  # type: ignore[arg-type]
    assert gpus.by_nvml(tmp_path) == ()


SMI = """#!/bin/sh
[ "$*" = "--query-gpu=index,name,memory.total,pci.bus_id --format=csv,noheader,nounits" ] || exit 2
"""
DEAD_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running."
)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("echo '0, NVIDIA H100 80GB HBM3, 81559, 00000000:19:00.0'", [(0, 81559 << 20)]),
        ("echo '0, NVIDIA GB10, [N/A], 0000000F:01:00.0'", [(0, None)]),
        (f'echo "{DEAD_DRIVER}"; exit 9', []),
        ("echo 'No devices were found'", []),
        ("sleep 60", []),
        ("kill -9 $$", []),
    ],
    ids=["one", "unified memory", "no driver", "no device", "hangs", "dies"],
)
def test_what_nvidia_smi_says(
    said: str, found: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose driver is broken has no GPU, and is not waited for."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"{SMI}exec 2>&1\n{said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if "sleep" in said:
        monkeypatch.setattr(gpus, "_WAIT_S", 0.2)
    assert [(gpu.index, gpu.memory_bytes) for gpu in gpus.by_smi(tmp_path)] == found
