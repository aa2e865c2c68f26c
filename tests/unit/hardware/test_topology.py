"""The description of the machine, drawn and as JSON, and the command that prints it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from hardware import linux, topology
from hardware.machine import Gpu, Machine
from tests.support.machines import unfold
from tests.support.outside import install
from tpo_mp import cli
from tpo_mp.errors import ExitCode
from tpo_mp.supervisor import placement
from tpo_mp.supervisor.pinning import EngineNeed, assign

ROOT = Path(__file__).parents[3]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of this tree are known, however old the installation is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    install(tmp_path, {"commands": project["entry-points"]["tpo_mp.commands"]})
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_the_command_comes_in_by_an_entry_point_and_draws_this_machine() -> None:
    """Named in the help; every CPU that we may use is in the drawing."""
    assert "topology" in CliRunner().invoke(cli.cli, ["--help"]).output
    told = CliRunner().invoke(cli.cli, ["topology", "--workers", "1"])
    assert told.exit_code == ExitCode.OK
    assert "workers   1" in told.output
    assert "node 0" in told.output


@pytest.mark.usefixtures("installed")
def test_json_holds_the_plan_that_a_gateway_follows() -> None:
    """The slots are those of ``placement``."""
    told = CliRunner().invoke(cli.cli, ["topology", "--json"])
    seen = json.loads(told.output)
    assert seen["workers"] == placement.auto_workers()
    assert tuple(seen["plan"]["slots"]) == placement.plan(placement.auto_workers())
    assert set(seen["machine"]["cpus"]) == set(placement.allowed_cpus())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "engine", ["", "=3", "a b", "x=many", "x@gpu99", "x=1@", "x=-1", "x=99999"]
)
def test_an_engine_that_cannot_be_read_is_wrong_usage(engine: str) -> None:
    """One line and exit code 2."""
    told = CliRunner().invoke(cli.cli, ["topology", "--engine", engine])
    assert told.exit_code == ExitCode.USAGE
    assert "--engine" in told.output


@pytest.mark.usefixtures("installed")
def test_the_engines_of_a_configuration_are_drawn(tmp_path: Path) -> None:
    """Its workers too; a file that is wrong is refused as anywhere."""
    file = tmp_path / "tpo.toml"
    file.write_text(
        '[server]\nworkers = 1\n[[engines]]\nname = "one"\ncores = 1\ncommand = ["x"]\n'
    )
    told = CliRunner().invoke(cli.cli, ["topology", "--json", "--config", str(file)])
    seen = json.loads(told.output)
    plan = placement.deal(1, [EngineNeed("one", 1)])
    assert seen["workers"] == 1
    assert seen["plan"]["engines"] == {"one": list(plan.engines["one"])}
    assert seen["plan"]["reason"] == plan.reason
    file.write_text("[server]\nwokers = 1\n")
    wrong = CliRunner().invoke(cli.cli, ["topology", "--config", str(file)])
    assert wrong.exit_code != ExitCode.OK


def test_an_engine_is_wanted_near_its_gpu() -> None:
    """By the GPU's number; an engine without one may be anywhere."""
    machine = Machine(system="linux", gpus=(Gpu(0, "a", node=0), Gpu(1, "b", node=1)))
    assert topology.needs(["x=8@gpu1", "y"], machine) == [EngineNeed("x", 8, 1), EngineNeed("y")]


def test_every_core_is_drawn_with_who_is_on_it(tmp_path: Path) -> None:
    """Workers by their slot, engines by their name; each cache is a line of its own."""
    machine = linux.read(unfold("two_sockets_256", tmp_path))
    plan = assign(machine.cores, 8, [EngineNeed("big", 16, 0)])
    drawn = topology.draw(topology.Topology(machine, 8, plan))
    assert "128 of 2 threads on 2 sockets" in drawn
    assert drawn.count("    + ") == 16
    assert drawn.count(" big]") == 16
    assert "[64,192 slot0/-]" in drawn
    assert "L3 16 x 32 MiB" in drawn


def test_a_container_is_drawn_with_its_limits(tmp_path: Path) -> None:
    """Quota, cpuset and memory."""
    machine = linux.read(unfold("container_v2", tmp_path))
    drawn = topology.draw(topology.Topology(machine, 2, assign(machine.cores, 2)))
    for said in ("4-7 (4 of 16)", "quota     2.5 CPUs", "cpuset    4-7", "limited to 4 GiB"):
        assert said in drawn


def test_where_nothing_can_be_pinned_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer, not an error."""
    # Not kept: later tests are told of the CPUs that there are.
    monkeypatch.setattr(placement, "allowed_cpus", placement.allowed_cpus.__wrapped__)
    monkeypatch.setattr(placement, "can_pin", lambda: False)
    assert "cannot pin here" in topology.draw(topology.describe(2))


def test_more_workers_than_cpus_are_drawn_unpinned() -> None:
    """The plan and its reason agree."""
    drawn = topology.draw(topology.describe(len(placement.allowed_cpus()) + 1))
    assert "slot0" not in drawn
    assert "pinning   off" in drawn
