"""Signals and commands to a running supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from tests.integration.supervisor.conftest import Fakes
from tests.support.wait import accepts, quickest, wait_for
from tpo_mp.errors import Fault
from tpo_mp.supervisor.client import NotRunning, request
from tpo_mp.supervisor.ctl import MAX_CLIENTS

MODES = [pytest.param({}, id="native"), pytest.param({"TPO_PORTABLE": "1"}, id="portable")]


def test_the_status_names_every_process(fakes: Fakes) -> None:
    """Per slot: pid, cpu, state, restarts, beat age, config epoch, version."""
    gateway = fakes()
    gateway.warm()
    done = gateway.tpo("status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["state"] == "running"
    assert status["supervisor"]["pid"] == gateway.pid
    assert [slot["slot"] for slot in status["slots"]] == [0, 1]
    for slot in status["slots"]:
        assert slot["state"] == "ready"
        assert slot["config_epoch"] == 1
        assert slot["beat_age_s"] < 30
        assert slot["restarts"] == 0
        assert slot["version"] == status["version"]
        assert os.getpgid(slot["pid"]) == os.getpgid(gateway.pid)
    assert status["port"] == gateway.port
    assert status["degraded"] == []
    echo = {"name": "echo", "kind": "echo", "models": ["echo"], "state": "unknown"}
    assert status["backends"] == [echo]


@pytest.mark.parametrize("env", MODES)
def test_a_term_drains_and_leaves_nothing(fakes: Fakes, env: dict[str, str]) -> None:
    """Exit 0, no process, no registry, no pid file, no socket."""
    gateway = fakes(env=env)
    gateway.stop()
    left = {path.name for path in gateway.state_dir.iterdir()}
    assert left == {"install.key"}


def test_a_drain_closes_the_port_at_once(fakes: Fakes) -> None:
    """New connections are refused while the last worker still drains."""
    gateway = fakes(vice="slow-drain")
    gateway.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in gateway.stderr, 5, "the drain")
    wait_for(lambda: not accepts("127.0.0.1", gateway.port), 10, "a refused connection")
    assert gateway.status()["state"] == "draining"
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(40) == 0
    gateway.close()


def test_the_second_term_stops_quickly(fakes: Fakes) -> None:
    """Within two seconds, though the drain would take minutes."""
    gateway = fakes(config="[server]\ndrain_s = 300\n", vice="slow-drain")
    gateway.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in gateway.stderr, 5, "the drain")
    gateway.send_signal(signal.SIGTERM)
    wait_for(gateway.ended, 10, "the end")
    assert gateway.wait() == 0
    gateway.close()


def test_the_drain_deadline_ends_what_does_not_finish(fakes: Fakes) -> None:
    """Exit 0 soon after the deadline, and not before."""
    gateway = fakes(config="[server]\ndrain_s = 0.5\n", vice="slow-drain")
    began = time.monotonic()
    gateway.send_signal(signal.SIGTERM)
    wait_for(gateway.ended, 10, "the end")
    assert gateway.wait() == 0
    assert time.monotonic() - began > 0.4
    gateway.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_the_whole_group_reaches_only_the_supervisor(
    fakes: Fakes, number: signal.Signals
) -> None:
    """Ctrl-C stops quickly and in order: no child ends by the signal."""
    gateway = fakes()
    os.killpg(os.getpgid(gateway.pid), number)
    assert gateway.wait(40) == 0
    ends = [line for line in gateway.stderr.splitlines() if "_died" in line]
    assert not [line for line in ends if f"signal={number.name}" in line], ends
    gateway.close()


def test_the_stop_command_drains(fakes: Fakes) -> None:
    """Answered at once; then the socket is gone."""
    gateway = fakes()
    assert request(gateway.state_dir, "stop") == {"ok": True}
    assert gateway.wait(40) == 0
    gateway.close()
    with pytest.raises(NotRunning, match="nothing runs"):
        request(gateway.state_dir, "status")


def test_an_unknown_command_is_answered(fakes: Fakes) -> None:
    """With its name."""
    gateway = fakes(workers=1)
    assert request(gateway.state_dir, "dance") == {
        "ok": False, "error": "unknown command 'dance'",
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"nonsense\n", b"[1]\n", b"x" * 70_000, b""])
def test_a_client_that_talks_nonsense_disturbs_nobody(fakes: Fakes, text: bytes) -> None:
    """It is answered or dropped; the next one is served."""
    gateway = fakes(workers=1)
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(gateway.state_dir / "control.sock"))
        rude.sendall(text)
        rude.shutdown(socket.SHUT_WR)
        rude.settimeout(30)
        answer = rude.recv(1000)
    assert answer == b"" or b'"ok": false' in answer
    assert gateway.status()["state"] == "running"


def test_silent_clients_cost_neither_time_nor_cpu(fakes: Fakes) -> None:
    """Places are few; more silent clients than places wait, the supervisor does not spin."""
    gateway = fakes(workers=1)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS + 4)]
    try:
        for client in silent:
            client.connect(str(gateway.state_dir / "control.sock"))
        quickest(partial(_cpu_share, gateway.pid), 1, 0.3)
    finally:
        for client in silent:
            client.close()
    assert gateway.status()["state"] == "running"


def test_clients_that_left_while_they_waited_take_no_places(fakes: Fakes) -> None:
    """A restart may take as long as a drain: those who asked and left are forgotten at once."""
    gateway = fakes(vice="slow-drain")
    gateway.warm()
    for _ in range(MAX_CLIENTS + 2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(gateway.state_dir / "control.sock"))
            client.sendall(b'{"command": "restart"}\n')
    wait_for(lambda: gateway.status()["rolling"], 5, "the restart they asked for")
    gateway.send_signal(signal.SIGQUIT)
    assert gateway.wait(40) == 0
    gateway.close()


def test_a_full_queue_is_waited_for(fakes: Fakes) -> None:
    """A supervisor that stands still for a moment is no supervisor that does not answer."""
    gateway = fakes(workers=1)
    queued: list[socket.socket] = []
    gateway.send_signal(signal.SIGSTOP)
    try:
        with contextlib.suppress(BlockingIOError):
            for _ in range(10 * MAX_CLIENTS):
                queued.append(socket.socket(socket.AF_UNIX))
                queued[-1].setblocking(False)
                queued[-1].connect(str(gateway.state_dir / "control.sock"))
        with pytest.raises(Fault, match=r"no answer to 'status' within 0\.1 s"):
            request(gateway.state_dir, "status", timeout_s=0.1)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(gateway.status)
            for client in queued:
                client.close()
            gateway.send_signal(signal.SIGCONT)
            assert asked.result(60)["state"] == "running"
    finally:
        gateway.send_signal(signal.SIGCONT)
        for client in queued:
            client.close()


def test_a_term_in_a_rolling_restart_ends_it(fakes: Fakes) -> None:
    """Who asked for the restart is told; the replacement, still booting, ends with the others."""
    gateway = fakes()
    gateway.warm()
    gateway.vice("shard", "hang-boot")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(request, gateway.state_dir, "restart")
        wait_for(lambda: gateway.status()["rolling"], 10, "the restart")
        gateway.stop()
        assert asked.result(60) == {"ok": False, "error": "the host is stopping"}


def test_a_client_that_ends_its_half_is_answered(fakes: Fakes) -> None:
    """As a shell does that pipes a command into the socket; the answer takes a while."""
    gateway = fakes(workers=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(gateway.state_dir / "control.sock"))
        client.sendall(b'{"command": "reload"}\n')
        client.shutdown(socket.SHUT_WR)
        assert b'"ok": true' in client.recv(10_000)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
@pytest.mark.parametrize("env", MODES)
def test_a_supervisor_without_descriptors_neither_spins_nor_ends(
    fakes: Fakes, env: dict[str, str]
) -> None:
    """It can start nobody and answer nobody; slots that live serve on; later all is well."""
    gateway = fakes(env=env, config="[supervisor]\nintensity = 1000\nbackoff_max_s = 1.0\n")
    gateway.warm()
    before = gateway.status()
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(before["slots"][0]["pid"], signal.SIGKILL)
    os.kill(before["slots"][1]["pid"], signal.SIGSTOP)  # its beat is looked into meanwhile
    wait_for(lambda: "cannot_start_a_process" in gateway.stderr, 10, "a start that failed")
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(gateway.state_dir / "control.sock"))
        quickest(partial(_cpu_share, gateway.pid), 1, 0.3)
    os.kill(before["slots"][1]["pid"], signal.SIGCONT)
    assert gateway.knock()
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)
    gateway.warm()
    assert all(slot["state"] == "ready" for slot in gateway.status()["slots"])
    gateway.end()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_every_process_may_have_as_many_descriptors_as_the_hard_limit(fakes: Fakes) -> None:
    """Whatever the shell's soft limit was; and none leaves a core file."""
    most = _lowered_descriptors()
    gateway = fakes(prefix=("prlimit", f"--nofile=200:{most}"))
    for pid in gateway.processes():
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (most, most)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def _lowered_descriptors() -> int:
    """A hard limit just below ours: anybody may lower it, only the superuser may raise it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 5000 if hard == resource.RLIM_INFINITY else min(5000, hard - 1)


def _cpu_share(pid: int) -> float:
    process = psutil.Process(pid)
    before, began = process.cpu_times(), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1, 5, "a second to pass")
    after, took_s = process.cpu_times(), time.monotonic() - began
    return (after.user + after.system - before.user - before.system) / took_s


@pytest.mark.parametrize("env", MODES)
def test_a_rolling_restart_replaces_every_process_without_a_refused_connection(
    fakes: Fakes, env: dict[str, str]
) -> None:
    """USR2: other pids on the same port, a client connecting all the while."""
    gateway = fakes(env=env)
    gateway.warm()
    before = gateway.processes() - {gateway.pid}
    stop, failures, served = threading.Event(), [], []

    def client() -> None:
        while not stop.is_set():
            try:
                served.append(gateway.knock())
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    answer = request(gateway.state_dir, "restart")
    stop.set()
    thread.join()
    assert answer == {"ok": True}
    assert not failures
    assert all(served)
    gateway.warm()
    assert not before & gateway.processes()
    assert gateway.status()["restarts"] == 0


def test_usr2_does_the_same_as_the_command(fakes: Fakes) -> None:
    """By signal there is no answer, but a line in the log."""
    gateway = fakes()
    before = set(gateway.worker_pids())
    gateway.send_signal(signal.SIGUSR2)
    wait_for(lambda: "rolling_restart_ended" in gateway.stderr, 10, "the end of the restart")
    assert not before & set(gateway.worker_pids())


def test_a_rolling_restart_into_broken_code_keeps_the_old_workers(fakes: Fakes) -> None:
    """The replacement refuses: the command fails, the slot serves, status asks for a restart."""
    gateway = fakes()
    gateway.warm()
    before = gateway.worker_pids()
    gateway.vice("shard", "refuse")
    answer = request(gateway.state_dir, "restart")
    assert answer["ok"] is False
    assert "restart needed" in answer["error"]
    assert gateway.worker_pids() == before
    assert gateway.status()["restart_needed"]
    assert gateway.knock()


def test_a_second_start_on_the_same_directory_is_already_running(fakes: Fakes) -> None:
    """Exit 5 with the pid of the first."""
    gateway = fakes(workers=1)
    done = subprocess.run(
        gateway.command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=gateway.environment,
    )
    assert done.returncode == 5
    assert f"already running: pid {gateway.pid}" in done.stderr


def test_a_second_start_on_the_same_port_is_refused(fakes: Fakes) -> None:
    """Exit 6 although the first one listens with ``SO_REUSEPORT``."""
    gateway = fakes(workers=2)
    other = fakes("--port", str(gateway.port), start=False)
    done = subprocess.run(
        other.command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=gateway.environment,
    )
    assert done.returncode == 6
    assert f"address in use: 127.0.0.1:{gateway.port}" in done.stderr
    assert done.stdout == ""


def test_the_service_manager_is_told(fakes: Fakes) -> None:
    """READY when the ready line is out, STOPPING on the way down."""
    gateway = fakes(start=False, workers=1)
    gateway.folder.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(gateway.folder / "notify")
        manager.bind(path)
        manager.settimeout(30)
        gateway.environment["NOTIFY_SOCKET"] = path
        gateway.start()
        assert manager.recv(500).startswith(b"READY=1")
        gateway.stop()
        assert manager.recv(500) == b"STOPPING=1"
