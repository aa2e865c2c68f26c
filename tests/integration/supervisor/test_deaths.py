"""Workers and control that die, hang or refuse, under a real supervisor."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from tests.integration.supervisor.conftest import FakeGateway, Fakes
from tests.support.gateway import ROOT, Gateway
from tests.support.wait import crowded, wait_for

MODES = [pytest.param({}, id="native"), pytest.param({"TPO_PORTABLE": "1"}, id="portable")]


def fails(gateway: FakeGateway, within_s: float) -> tuple[int, float]:
    """Run a gateway that is to give up; return its exit code and how long it took."""
    gateway.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with gateway.stdout_path.open("wb") as out, gateway.stderr_path.open("wb") as err:
        done = subprocess.run(
            gateway.command, stdout=out, stderr=err, timeout=within_s, check=False,
            env=gateway.environment, cwd=ROOT,
        )  # fmt: skip
    return done.returncode, time.monotonic() - began


@pytest.mark.parametrize("env", MODES)
def test_a_killed_worker_is_replaced_by_the_spare(fakes: Fakes, env: dict[str, str]) -> None:
    """Within half a second, on the same port, without a refused connection."""
    gateway = fakes(env=env)
    gateway.warm()
    victim, spare = gateway.slot(0)["pid"], gateway.status()["spare"]["pid"]
    os.kill(victim, signal.SIGKILL)
    served = {gateway.knock() for _ in range(50)}
    assert served
    wait_for(lambda: gateway.slot(0)["pid"] == spare, 5, "the spare in slot 0")
    wait_for(lambda: "worker_replaced" in gateway.stderr, 5, "the replacement in the log")
    took = re.search(r"worker_replaced slot=0 .*in_ms=(\d+)", gateway.stderr)
    assert took is not None
    assert int(took[1]) < 2000 * crowded()  # how fast is a figure of the chaos suite
    assert "signal=SIGKILL" in gateway.stderr
    gateway.warm()
    assert gateway.status()["restarts"] == 1
    assert gateway.status()["degraded"] == []


@pytest.mark.parametrize("env", MODES)
def test_a_stopped_worker_leaves_a_traceback_and_is_replaced(
    fakes: Fakes, env: dict[str, str]
) -> None:
    """Detected within three seconds; its port share is served by the neighbour meanwhile."""
    gateway = fakes(env=env)
    gateway.warm()
    victim = gateway.slot(1)["pid"]
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: gateway.slot(1)["pid"] not in (None, victim), 6, "a new worker")
    wait_for(lambda: victim not in gateway.processes(), 10, "the end of the stopped worker")
    assert "Fatal Python error: Aborted" in gateway.stderr
    silent = re.search(r"worker_hangs .*silent_s=([\d.]+)", gateway.stderr)
    assert silent is not None
    assert float(silent[1]) > 1.9  # how soon is a figure of the chaos suite


def test_a_stopped_workers_connections_are_taken_by_its_neighbour(fakes: Fakes) -> None:
    """After 200 ms of silence no connection waits for the stopped one."""
    gateway = fakes("--workers", "2")
    for _ in range(5):
        gateway.warm()
        stopped = gateway.slot(0)
        os.kill(stopped["pid"], signal.SIGSTOP)
        wait_for(lambda: gateway.slot(0)["beat_age_s"] > 0.3, 5, "silence")
        answers = {gateway.knock() for _ in range(40)}
        assert f"seat {stopped['seat']}" not in answers
        os.kill(stopped["pid"], signal.SIGCONT)
        if gateway.slot(0)["pid"] == stopped["pid"] and "worker_hangs" not in gateway.stderr:
            break
        # It stood for so long on a slow machine that it counted as hung: another one is stopped.
        wait_for(lambda: gateway.slot(0)["pid"] not in (None, stopped["pid"]), 10, "a new worker")  # noqa: B023
    wait_for(lambda: gateway.slot(0)["beat_age_s"] < 0.2, 5, "its beat")
    back = f"seat {stopped['seat']}"
    wait_for(lambda: back in {gateway.knock() for _ in range(20)}, 5, "its return")


def test_control_is_replaced_too(fakes: Fakes) -> None:
    """Its death disturbs no worker."""
    gateway = fakes()
    workers, control = gateway.worker_pids(), gateway.status()["control"]["pid"]
    os.kill(control, signal.SIGKILL)

    def replaced() -> bool:
        seen = gateway.status()["control"]
        return seen["pid"] not in (None, control) and seen["state"] == "ready"

    wait_for(replaced, 5, "a new control")
    assert gateway.worker_pids() == workers


@pytest.mark.parametrize("env", MODES)
def test_crash_on_boot_of_every_slot_is_exit_3_with_the_reason(
    fakes: Fakes, env: dict[str, str]
) -> None:
    """In under ten seconds, and the child's own words are in the last line."""
    gateway = fakes(start=False, env=env, vice="crash-boot")
    code, took_s = fails(gateway, 60)
    assert code == 3
    assert took_s < 10 * crowded()
    assert "giving_up" in gateway.stderr
    assert "RuntimeError: born to die" in gateway.stderr.splitlines()[-1]
    assert gateway.stdout_path.read_text() == ""


def test_a_refusal_at_boot_is_not_tried_again(fakes: Fakes) -> None:
    """Another version of the code does not go away: one try per slot, exit 3."""
    config = "[supervisor]\nbackoff_min_s = 30\n"
    gateway = fakes(start=False, vice="refuse", config=config)
    gateway.folder.mkdir(exist_ok=True)
    gateway.config_path = gateway.folder / "tpo.toml"
    gateway.config_path.write_text(config)
    code, _ = fails(gateway, 60)
    assert code == 3
    assert gateway.stderr.count('worker_died where="slot') <= 2
    assert "restart needed" in gateway.stderr.splitlines()[-1]


def test_a_crash_loop_after_a_good_start_is_exit_4(fakes: Fakes) -> None:
    """Every slot dying again and again, back-off included, ends the host."""
    gateway = fakes(
        config="[supervisor]\nbackoff_min_s = 0.05\nbackoff_max_s = 0.1\nintensity = 2\n"
    )
    gateway.warm()
    gateway.vice("shard", "crash-boot")
    for pid in [*gateway.worker_pids(), gateway.status()["spare"]["pid"]]:
        os.kill(pid, signal.SIGKILL)
    assert gateway.wait(60) == 4
    assert "giving_up exit_code=4" in gateway.stderr
    gateway.close()


def test_one_crashing_slot_backs_off_while_the_other_serves(fakes: Fakes) -> None:
    """No spinning: the broken slot waits, connections are answered, status tells."""
    gateway = fakes(config="[supervisor]\nintensity = 2\nbackoff_min_s = 20\n")
    gateway.warm()
    gateway.vice("shard", "crash-boot")
    os.kill(gateway.slot(0)["pid"], signal.SIGKILL)
    wait_for(lambda: "backing_off" in gateway.stderr, 10, "back-off of the spare")
    os.kill(gateway.slot(0)["pid"], signal.SIGKILL)
    wait_for(lambda: gateway.slot(0)["state"] == "backing off", 10, "back-off of slot 0")
    deaths = gateway.stderr.count("worker_died")
    seat = gateway.slot(1)["seat"]
    assert {gateway.knock() for _ in range(30)} == {f"seat {seat}"}
    assert gateway.stderr.count("worker_died") == deaths
    assert "slot 0" in gateway.status()["degraded"]
    gateway.end()


def test_a_killed_supervisor_takes_everyone_along(fakes: Fakes) -> None:
    """Within a second no process is left, and the next start works at once."""
    gateway = fakes()
    gateway.warm()
    supervisor = gateway.pid
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not gateway.processes() - {supervisor}, 10, "no process left")
    Gateway.close(gateway)  # ours would also remove the registry
    gateway.start()
    assert (gateway.state_dir / "registry.previous").exists()


def test_a_killed_portable_supervisor_takes_everyone_along(fakes: Fakes) -> None:
    """The lifeline does it where the kernel does not."""
    gateway = fakes(env={"TPO_PORTABLE": "1"})
    supervisor = gateway.pid
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not gateway.processes() - {supervisor}, 10, "no process left")
    gateway.close()


def test_kills_in_a_row_leave_a_host_that_serves(fakes: Fakes) -> None:
    """Ten kills of random slots: every connection is answered in between."""
    gateway = fakes(config="[supervisor]\nintensity = 100\n")
    for round_ in range(10):
        victim = gateway.slot(round_ % 2)["pid"]
        os.kill(victim, signal.SIGKILL)
        assert all(gateway.knock() for _ in range(10))
        wait_for(
            lambda: all(slot["state"] == "ready" for slot in gateway.status()["slots"]),
            5, "both slots ready",
        )  # fmt: skip
    assert gateway.status()["restarts"] == 10
