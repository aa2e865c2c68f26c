"""The command line, the scenarios it knows, and what they are measured with."""

import tomllib

import pytest

from benchmarks import configs, peers, procs, run
from benchmarks.plan import Outcome
from benchmarks.scenario import NAMES, OURS, PEERS, find
from benchmarks.scenarios import hop
from benchmarks.targets import LABELS, READY


def test_every_scenario_is_found_with_a_title_a_method_and_columns():
    """A name in the list is a file that works."""
    for name in NAMES:
        scenario = find(name)
        assert scenario.title
        assert scenario.method
        assert scenario.columns


def test_unknown_scenario_is_refused(capsys):
    """Exit code 2 and the name."""
    with pytest.raises(SystemExit, match="2"):
        run.parse(["relay", "nonsense"])
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--secs", "0"], ["--conns", "-1"]])
def test_measurement_of_nothing_is_refused(words):
    """Zero rounds would be an empty report."""
    with pytest.raises(SystemExit, match="2"):
        run.parse(words)


@pytest.mark.parametrize("mode", configs.MODES)
def test_configurations_are_toml_with_their_backends(mode):
    """Every mode renders, and none leaves a placeholder behind; ``simulate`` brings its own."""
    text = configs.toml(mode, "127.0.0.1:9")
    number = 0 if mode in configs.SIMULATED else 2 if mode in configs.ROUTES else 1
    assert len(tomllib.loads(text).get("backends", ())) == number
    assert "{" not in text.replace("{ rps", "").replace('{ "*" =', "")


def test_ready_line_gives_both_addresses():
    """The line the gateway promises to print."""
    import re

    line = "tpo-mp ready http://127.0.0.1:8080 workers=1 pid=7 ops=http://127.0.0.1:9090"
    seen = re.search(READY, f"noise\n{line}\n", re.MULTILINE)
    assert seen is not None
    assert seen.groupdict() == {"url": "http://127.0.0.1:8080", "ops": "http://127.0.0.1:9090"}


@pytest.mark.parametrize("name", peers.PEERS)
def test_peer_commands_have_no_placeholder_left(name, tmp_path):
    """Ports, addresses and files are all filled in."""
    slot = peers.Slot(1111, 2222, "127.0.0.1:3333", tmp_path)
    argv = peers.command(peers.PEERS[name], tmp_path / "program", slot)
    assert argv[0] == str(tmp_path / "program")
    written = " ".join(argv) + "".join(path.read_text() for path in tmp_path.iterdir())
    assert "127.0.0.1:3333" in written
    assert "1111" in written
    assert not any("{" in word for word in argv)


def test_peer_that_is_not_installed_is_not_there(tmp_path):
    """No directory and a half-made one are the same answer."""
    smg = peers.PEERS["smg"]
    assert peers.program(smg, None) is None
    (tmp_path / "smg" / "bin").mkdir(parents=True)
    (tmp_path / "smg" / "bin" / "smg").touch()
    assert peers.program(smg, tmp_path) is None
    (tmp_path / "smg" / ".installed").touch()
    assert peers.program(smg, tmp_path) == tmp_path / "smg" / "bin" / "smg"


def test_peers_of_comparisons_are_known_by_name():
    """A comparison never asks for a target that nothing can start."""
    assert set(PEERS) <= set(peers.PEERS)
    assert set(OURS) <= set(LABELS)


def test_hop_is_foreign_minus_own():
    """Per request, not per second."""

    def outcome(cpu: float) -> Outcome:
        return Outcome(
            requests=1000, secs=1, rps=1000, p50_ms=1, p90_ms=1, p99_ms=1, max_ms=1, non2xx=0,
            errors=0, cpu_s=cpu,
        )  # fmt: skip

    row = hop.row(2, outcome(0.020), outcome(0.032))
    assert (row["round"], row["own_cpu_us"], row["foreign_cpu_us"]) == (2, 20.0, 32.0)
    assert row["hop_cpu_us"] == 12.0


def test_dead_process_weighs_nothing():
    """A reading after the end is zero, not an exception."""
    nobody = 2**22 + 1
    assert procs.cpu_s([nobody]) == 0.0
    assert procs.pss(nobody) == {}


def test_affinity_is_given_back():
    """Starting a target on a core leaves the runner where it was."""
    cores = procs.Cores.choose()
    if not cores.pinned:
        pytest.skip("nothing can be pinned here")
    import os

    before = os.sched_getaffinity(0)
    with procs.on_cores(cores.for_gateway()):
        assert os.sched_getaffinity(0) == {cores.gateway}
    assert os.sched_getaffinity(0) == before
