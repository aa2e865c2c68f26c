"""Workers that neither serve nor die: stopped, spinning, or only starved of CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.chaos.conftest import StartHost
from tests.conftest import require
from tests.support.host import Host, kill, logged_at
from tests.support.load import Crowd, Load
from tests.support.wait import unhurried, wait_for

DETECT_S = 3.0
GRACE_S = 1.0
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")


def check_hang(host: Host, victim: int, hung_at: float, slack: float) -> None:
    """Check the promises: found, aborted with a traceback, killed at last, replaced."""
    hangs = host.event("worker_hangs", 20, pid=victim)
    found_s = logged_at(hangs) - hung_at
    died = host.event("worker_died", 3 * slack, pid=victim)
    died_s = logged_at(died) - logged_at(hangs)
    print(f"found after {found_s:.2f} s, dead {died_s:.2f} s later, {died.get('signal')}")
    assert hangs["action"] == "abort"
    assert found_s <= DETECT_S * slack
    assert died_s <= GRACE_S * slack + 0.2
    replaced = host.event("worker_replaced", 5 * slack)
    assert logged_at(replaced) - logged_at(hangs) < 0.5 * slack
    assert "Fatal Python error: Aborted" in host.stderr


@pytest.mark.alone
def test_a_stopped_worker_is_found_aborted_and_replaced(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """SIGSTOP under load: silent for two seconds, gone within three, and nobody hangs for ever."""
    host = start_host()
    with Load(host.url, rng, clients=8) as load:
        host.warm()
        victim = host.slot(0)["pid"]
        held = host.connections_of(victim, host.port) + 8
        hung_at = time.time()
        kill(victim, signal.SIGSTOP)
        check_hang(host, victim, hung_at, slack)
        load.more(30)
        load.stop()
        print(load.outcomes())
        assert load.count("refused", "hung") == 0
        assert len(load.failed()) <= held
    host.end()


@pytest.mark.alone
def test_connections_queued_at_a_stopped_worker_are_served(
    start_host: StartHost, slack: float
) -> None:
    """A neighbour takes its listener over long before it counts as hung."""
    host = start_host(config="[supervisor]\nintensity = 10\n")

    def served() -> int:
        host.warm()
        stopped: int = host.slot(0)["pid"]
        died = len(host.events("worker_died"))
        kill(stopped, signal.SIGSTOP)
        with Crowd(host.url, 60, stream=False, patience_s=10) as crowd:
            attempts = crowd.ended()
        # One that the victim had accepted in its last moment can only be answered by its end.
        assert crowd.outcomes()["ok"] >= 58, crowd.outcomes()
        waits = sorted(a.ended_at - a.began_at for a in attempts if a.outcome == "ok")
        print(f"slowest answers {[round(s, 3) for s in waits[-3:]]}")
        assert waits[-1] < 1.5 * slack
        assert len(host.events("worker_died")) == died
        return stopped

    victim = unhurried(served, 1.5)
    host.event("worker_died", 8 * slack, pid=victim)
    host.end()


@pytest.mark.alone
def test_a_spinning_worker_is_found_by_its_beat(start_host: StartHost, slack: float) -> None:
    """A busy loop runs all the time and serves nobody: its event loop does not beat."""
    host = start_host(env={"TPO_TEST": "1", "TPO_FAILPOINTS": "inflight.accepted=spin:1:3"})
    host.warm()
    pids = set(host.worker_pids())
    hung_at = time.time()
    with Crowd(host.url, 8, stream=False, patience_s=30) as crowd:
        hangs = host.event("worker_hangs", 20)
        victim = hangs["pid"]
        assert victim in pids
        lags = host.event("worker_lags", pid=victim)
        assert logged_at(lags) < logged_at(hangs), "the alarm comes first"
        check_hang(host, victim, hung_at, slack)
        crowd.ended()
    # Each serves three before it spins, also whoever came in time to take the place of one.
    assert crowd.outcomes()["ok"] < 8
    host.end()


@contextmanager
def starved(pid: int) -> Iterator[None]:
    """Let a process have next to no CPU, without another process having less.

    A control group of one millisecond per second, in which the process stands behind a busy loop on
    the same core.
    """
    cores = os.sched_getaffinity(pid)
    group = Path(tempfile.mkdtemp(prefix="tpo-", dir=CPU_GROUPS))
    (group / "cpu.cfs_period_us").write_text("1000000")
    (group / "cpu.cfs_quota_us").write_text("1000")
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for member in (hog.pid, pid):
            (group / "cgroup.procs").write_text(str(member))
            os.sched_setaffinity(member, {min(cores)})
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        yield
    finally:
        hog.kill()
        hog.wait()
        with suppress(ProcessLookupError):
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(pid, cores)
            (CPU_GROUPS / "cgroup.procs").write_text(str(pid))
        wait_for(lambda: not (group / "cgroup.procs").read_text(), 5, "an empty control group")
        group.rmdir()


@pytest.mark.alone
def test_a_starved_worker_is_not_killed(start_host: StartHost) -> None:
    """No CPU is not its fault: it is silent for longer than a hung one may be, and lives on."""
    require(os.access(CPU_GROUPS / "cgroup.procs", os.W_OK), "a writable cpu control group")
    host = start_host()
    host.warm()
    victim = host.slot(0)["pid"]
    silences = [0.0]

    def silent() -> bool:
        seen: dict[str, Any] = host.slot(0)
        assert seen["pid"] == victim, host.events("worker_hangs")
        silences.append(seen["beat_age_s"])
        return silences[-1] > DETECT_S + 0.5

    with starved(victim):
        wait_for(silent, 30, "a starved worker", every_s=0.05)
    print(f"silent for {max(silences):.2f} s")
    wait_for(lambda: host.slot(0)["beat_age_s"] < 0.3, 5, "its beat")
    assert not host.events("worker_hangs")
    assert host.slot(0)["pid"] == victim
    host.end()


def test_a_stopped_supervisor_blames_nobody_when_it_wakes(
    start_host: StartHost, rng: Random
) -> None:
    """Workers serve on meanwhile, and none of them is taken for hung afterwards."""
    host = start_host()
    host.warm()
    pids = host.worker_pids()
    with Load(host.url, rng, clients=4) as load:
        kill(host.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_for(lambda: time.monotonic() - stopped_at > 3.2, 5, "longer than a hang may last")
        load.more(20)
        kill(host.pid, signal.SIGCONT)
        wait_for(lambda: host.slot(0)["beat_age_s"] < 0.3, 5, "the supervisor's turn")
        load.stop()
        assert not load.failed()
    assert host.worker_pids() == pids
    assert not host.events("worker_hangs")
    host.end()
