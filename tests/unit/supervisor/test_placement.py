"""Which CPU for which slot."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.support.machines import unfold
from tpo_mp.config.engines import EngineSection
from tpo_mp.supervisor import placement
from tpo_mp.supervisor.pinning import UNPINNED, Core, EngineNeed


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs, no quota, pinning possible."""
    monkeypatch.setattr(placement, "allowed_cpus", lambda: (0, 2, 1, 3))
    monkeypatch.setattr(placement, "cores", lambda: (Core((0, 1)), Core((2, 3))))
    monkeypatch.setattr(placement, "quota_cpus", lambda: None)
    monkeypatch.setattr(placement, "can_pin", lambda: True)


def test_hyperthreads_come_after_cores() -> None:
    """One thread of every core first, then the others."""
    pairs = {0: (0, 4), 4: (0, 4), 1: (1, 5), 5: (1, 5)}
    assert placement.cores_first([0, 1, 4, 5], pairs) == (0, 1, 4, 5)
    assert placement.cores_first([4, 5, 0, 1], pairs) == (0, 1, 4, 5)


def test_a_sibling_outside_the_mask_does_not_count() -> None:
    """A thread we may not use leaves its core to the one we may."""
    assert placement.cores_first([4, 1], {4: (0, 4), 1: (1, 5)}) == (1, 4)


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("\n", ())])
def test_kernel_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    """The kernel writes ranges and single numbers."""
    assert placement.parse_cpu_list(text) == cpus


@pytest.mark.usefixtures("machine")
def test_each_slot_gets_a_core_of_its_own() -> None:
    """The plan takes CPUs in the order of cores."""
    assert placement.plan(2) == (0, 2)


@pytest.mark.usefixtures("machine")
def test_more_workers_than_cpus_are_not_pinned() -> None:
    """Two workers on one CPU while another is idle would be worse than no pinning."""
    assert placement.plan(5) == (UNPINNED,) * 5


@pytest.mark.usefixtures("machine")
def test_a_quota_means_no_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers of one host would all choose the same CPUs."""
    monkeypatch.setattr(placement, "quota_cpus", lambda: 2.0)
    assert placement.plan(2) == (UNPINNED, UNPINNED)
    assert placement.auto_workers() == 2


@pytest.mark.usefixtures("machine")
def test_where_pinning_is_impossible_the_answer_is_unpinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS and the portable mode run on without."""
    monkeypatch.setattr(placement, "can_pin", lambda: False)
    assert placement.plan(1) == (UNPINNED,)
    assert not placement.pin(os.getpid(), 0)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.2),
        ({}, None),
    ],
)
def test_the_quota_is_read_from_either_cgroup_version(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    """``cpu.max`` of version 2, quota and period of version 1, or nothing."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert placement.quota_cpus(tmp_path, tmp_path / "none") == quota


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/web.slice/us.service\n",
         {"web.slice/us.service/cpu.max": "300000 100000\n", "web.slice/cpu.max": "max 100000\n"},
         3.0),
        ("0::/web.slice/us.service\n",
         {"web.slice/us.service/cpu.max": "300000 100000\n",
          "web.slice/cpu.max": "150000 100000\n"},
         1.5),
        ("4:cpu,cpuacct:/docker/abc\n0::/\n",
         {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
          "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n"},
         2.5),
        ("4:cpu,cpuacct:/docker/abc\n",  # sees its own group as the root
         {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
         0.5),
        ("nonsense\n", {"cpu.max": "100000 0\n"}, None),
    ],
)  # fmt: skip
def test_the_least_quota_of_all_groups_above_holds(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    """A service in a slice is held by both."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert placement.quota_cpus(tmp_path / "cgroup", tmp_path / "own") == quota


def test_a_process_is_pinned_inside_the_mask() -> None:
    """Pinning ourselves to an allowed CPU works and can be undone."""
    before = psutil.Process().cpu_affinity()
    try:
        cpu = placement.allowed_cpus()[0]
        assert placement.pin(os.getpid(), cpu)
        assert psutil.Process().cpu_affinity() == [cpu]
    finally:
        psutil.Process().cpu_affinity(before)


def test_pinning_a_dead_process_is_no_error() -> None:
    """It may die between spawn and pin."""
    assert not placement.pin(2**22 + 1, 0)


@pytest.mark.parametrize("text", ["0,2\n", "0-1", "(null)\n", "2-x", "", "\0"])
def test_siblings_that_make_no_sense_are_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxes and emulators write what they like: a CPU is its own sibling at least."""
    folder = tmp_path / "cpu2" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text(text)
    monkeypatch.setattr(placement, "_CPU_DIR", tmp_path)
    found = placement.siblings(2)
    assert 2 in found
    assert placement.cores_first([2], {2: found}) == (2,)


def test_no_cpu_is_in_two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the machine contradicts itself."""
    for cpu, text in {0: "0-1", 1: "1", 2: "1-2", 3: "0-3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    monkeypatch.setattr(placement, "_CPU_DIR", tmp_path)
    monkeypatch.setattr(placement, "allowed_cpus", lambda: (0, 1, 2, 3))
    dealt = [cpu for core in placement.cores(tmp_path) for cpu in core.cpus]
    assert sorted(dealt) == [0, 1, 2, 3]


@pytest.mark.usefixtures("machine")
def test_engines_of_a_configuration_get_cores_that_no_worker_has() -> None:
    """By their ``cores``; none is said to be short that has what it asked for."""
    needs = placement.needs_of([EngineSection(name="one", cores=1)])
    assert needs == [EngineNeed("one", 1)]
    plan = placement.deal(1, needs)
    assert plan.pinned
    assert {*plan.engines["one"], *plan.slots} in ({0, 2, 3}, {0, 1, 2})
    assert plan.slots[0] not in plan.engines["one"]
    assert plan.short == ()
    greedy = placement.deal(1, placement.needs_of([EngineSection(name="greedy", cores=9)]))
    assert (len(greedy.engines["greedy"]), greedy.short) == (2, ("greedy",))


@pytest.mark.usefixtures("machine")
def test_an_engine_that_cannot_be_bound_here_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be anywhere, and is named if it asked for more."""
    monkeypatch.setattr(placement, "can_pin", lambda: False)
    plan = placement.deal(1, [EngineNeed("one", 1), EngineNeed("any")])
    assert plan.engines == {"one": (), "any": ()}
    assert (plan.short, plan.reason) == (("one",), "cannot pin here")


@pytest.mark.parametrize(
    ("asked", "workers"), [((), 8), ((3,), 5), ((0,), 4), ((2, 0), 3), ((20,), 1)]
)
def test_as_many_workers_as_auto_starts_leave_room_for_engines(
    asked: tuple[int, ...], workers: int
) -> None:
    """Those that say no number have half of what others leave; a worker there is always."""
    needs = [EngineNeed(str(n), cores) for n, cores in enumerate(asked)]
    assert placement.beside(needs, 8, 8) == workers


def test_engines_are_wanted_near_their_gpus(tmp_path: Path) -> None:
    """The node of most of those it has; of all, where it names none and they are together."""
    root = unfold("two_sockets_alternating", tmp_path)
    assert placement.gpu_nodes(root) == {0: 0, 1: 1}

    def node(*gpus: int) -> int | None:
        engine = EngineSection(name="e", model="m", port=1, gpus=gpus)
        return placement.needs_of([engine], root)[0].node

    assert [node(0), node(1), node(1, 0), node(7), node()] == [0, 1, 1, None, None]
    assert placement.needs_of([EngineSection(name="e", port=1)], tmp_path / "none")[0].node is None
    (tmp_path / "sys/bus/pci/devices/0000:af:00.0/numa_node").write_text("-1\n")
    assert placement.gpu_nodes(root) == {0: 0}
    assert node() == 0
