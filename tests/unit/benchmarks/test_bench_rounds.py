"""Rounds: interleaved, rotating, and robust against a target that does not start."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from benchmarks import targets
from benchmarks.bench import Bench, Options
from benchmarks.procs import Cores
from benchmarks.targets import Live, Place, Skipped

CORES = Cores(0, 1, pinned=False)


class Stage:
    """A place where targets start on paper; names in ``missing`` do not."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing
        self.log: list[str] = []

    def version(self, _name: str) -> str:
        return "1.0"

    @contextlib.contextmanager
    def start(self, name: str, *, workers: int = 1):
        if name in self.missing:
            raise Skipped("not installed")
        self.log.append(f"start {name}")
        yield Live(name, "http://127.0.0.1:1")
        self.log.append(f"stop {name}")


def bench(stage: Stage, **options) -> Bench:
    return Bench(Options(**options), CORES, Path(), None, None, stage)


def test_every_round_measures_every_target_in_rotating_order():
    """Nobody is always first, and two targets never run at once."""
    stage = Stage()
    found = bench(stage, rounds=2).compare(["a", "b"], lambda _live: {"x": 1.0})
    assert stage.log == [
        *("start a", "stop a", "start b", "stop b"),
        *("start b", "stop b", "start a", "stop a"),
    ]
    assert [row["round"] for row in found["a"].rows] == [0, 1]
    assert found["a"].version == "1.0"


def test_target_that_does_not_start_is_asked_once_and_the_rest_goes_on():
    """A missing peer is a line in the report."""
    found = bench(Stage("b"), rounds=2).compare(["a", "b"], lambda _live: {"x": 1.0})
    assert len(found["a"].rows) == 2
    assert (found["b"].rows, found["b"].skipped) == ([], "not installed")


def test_only_the_wanted_targets_are_measured():
    """``--only`` is a filter, in the order of the scenario."""
    stage = Stage()
    bench(stage, rounds=1, only=("c", "a")).compare(["a", "b", "c"], lambda _live: {"x": 1.0})
    assert stage.log[::2] == ["start a", "start c"]


def test_configuration_with_ignored_parts_is_not_measured(monkeypatch, tmp_path):
    """A governed gateway whose limits are not built would be measured under a false name."""

    def check(argv, **_options):
        assert "--strict" in argv
        return subprocess.CompletedProcess(argv, 2, "", "warning: auth: not built\nwarning: b\n")

    monkeypatch.setattr(targets.subprocess, "run", check)
    place = Place("127.0.0.1:1", CORES, tmp_path)
    with pytest.raises(Skipped, match="auth: not built; warning: b"), place.start("tpo-governed"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_direct_target_is_the_upstream_itself(tmp_path):
    """Nothing is started and nothing is weighed."""
    with Place("127.0.0.1:9", CORES, tmp_path).start("direct") as live:
        assert live.url == "http://127.0.0.1:9"
        assert live.pids() == []
