"""The description of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hardware import topology
from tpo_mp.supervisor import placement


def test_this_machine_can_be_described() -> None:
    """The report names the CPUs of the mask and one line per pinned slot."""
    seen = topology.describe(1)
    assert set(seen.cpus) == set(placement.allowed_cpus())
    assert seen.workers == 1
    assert "cpus" in topology.report(1)


def test_where_nothing_can_be_pinned_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer, not an error."""
    monkeypatch.setattr(placement, "can_pin", lambda: False)
    assert topology.describe(2).pinning == "cannot pin here"


def test_more_workers_than_cpus_are_reported_unpinned() -> None:
    """The plan and its reason agree."""
    report = topology.report(len(placement.allowed_cpus()) + 1)
    assert "slot 0" not in report


def test_memory_nodes_list_allowed_cpus_only(tmp_path: Path) -> None:
    """A node's CPUs outside our mask are left out."""
    for node, cpus in ((0, "0-3"), (1, "4-7")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus)
    assert topology.numa_nodes(tmp_path, (1, 4, 5)) == {0: (1,), 1: (4, 5)}
