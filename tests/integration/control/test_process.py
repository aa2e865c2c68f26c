"""The control process: life, commands, configuration, ops port."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.control.conftest import StartHost
from tests.integration.control.host import CONTROL, ControlHost
from tests.support.wait import wait_for
from tpo_mp.shm.lifeline import words_path
from tpo_mp.shm.plane import Command, HostState, SeatState


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_it_boots_beats_and_acknowledges(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ready with the config epoch acknowledged, and the beat moves."""
    if kind == "portable":
        monkeypatch.setenv("TPO_PORTABLE", "1")
    host = start_host()
    lines = host.memory.plane.seat(CONTROL)
    assert lines.config_ack == host.config_epoch
    before = lines.beat
    wait_for(lambda: lines.beat > before + 3, what="beats")
    assert host.process is not None
    assert psutil.Process(host.process.pid).cmdline()[0].startswith("tpo: control")


def test_it_ignores_signals_and_obeys_the_command_word(host: ControlHost) -> None:
    """INT, TERM, HUP and USR2 reach whole groups and mean nothing here; STOP ends it with 0."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        host.signal(number)
    assert host.shards[0].put("t", "k", b"v")
    assert host.stop() == 0
    assert host.memory.plane.seat(CONTROL).state == SeatState.STOPPED


def test_drain_waits_for_the_workers(host: ControlHost) -> None:
    """It goes on serving while a worker lives, and ends by itself afterwards."""
    lines = host.memory.plane.seat(CONTROL)
    lines.command = Command.DRAIN
    wait_for(lambda: lines.state == SeatState.DRAINING, what="draining")
    assert host.shards[0].put("t", "k", b"v")
    for shard in host.shards:
        shard.lines.state = SeatState.STOPPED
    assert host.process is not None
    assert host.process.wait(timeout=30.0) == 0


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_it_ends_with_its_supervisor(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """End of file on the lifeline is the end."""
    if kind == "portable":
        monkeypatch.setenv("TPO_PORTABLE", "1")
    host = start_host()
    host.cut_lifeline()
    assert host.process is not None
    assert host.process.wait(timeout=30.0) == 1


def test_another_version_refuses_to_attach(tmp_path: Path) -> None:
    """A child from a newer installation leaves its reason and exits with 3."""
    host = ControlHost(tmp_path)
    try:
        host.start(wait=False, version="0.0.0-other")
        assert host.process is not None
        assert host.process.wait(timeout=40.0) == 3
        words = words_path(str(host.state_dir), CONTROL).read_text()
        assert words.startswith("restart needed")
    finally:
        host.__exit__(None, None, None)


def test_a_new_configuration_is_applied_and_acknowledged(host: ControlHost) -> None:
    """The access log starts when a reload asks for it."""
    access = host.folder / "access.log"
    epoch = host.publish(f'[observability]\naccess_log = "{access}"\nlog_format = "json"\n')
    lines = host.memory.plane.seat(CONTROL)
    wait_for(lambda: lines.config_ack == epoch, what="acknowledgement")
    call_id = host.shards[0].ids.new()
    host.shards[0].finish(call_id)
    text = wait_for(lambda: access.exists() and access.read_text(), what="an access line")
    assert json.loads(str(text))["call_id"] == call_id
    lost = host.shards[0].open()
    host.shards[0].die()

    def told() -> list[str]:
        return [line["call_id"] for line in map(json.loads, access.read_text().splitlines())]

    wait_for(lambda: lost in told(), what="the line of a call that died with its worker")
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    assert told() == [call_id, lost]
    assert access.stat().st_mode & 0o777 == 0o600


def test_a_configuration_it_cannot_read_is_refused(host: ControlHost) -> None:
    """A blob of another version is vetoed with a reason, and service goes on."""
    host.config_epoch += 1
    host.memory.publish_config(host.config_epoch, b"\x81\xa7version\xff")
    lines = host.memory.plane.seat(CONTROL)
    wait_for(lambda: lines.config_nack == host.config_epoch, what="refusal")
    assert "config" in words_path(str(host.state_dir), CONTROL).read_text()
    assert host.shards[0].put("t", "k", b"v")


def test_the_ops_port_answers_from_shared_memory(host: ControlHost) -> None:
    """Every path and alias, with status and type; workers are not asked."""
    for path in ("/live", "/livez", "/healthz"):
        assert host.get(path)[:2] == (200, b'{"status":"alive","alive":true}')
    for path in ("/ready", "/readyz"):
        status, body, kind = host.get(path)
        assert (status, json.loads(body)["status"], kind) == (200, "ready", "application/json")
    for path in ("/health", "/v1/health"):
        status, body, _ = host.get(path)
        seen = json.loads(body)
        assert (status, seen["status"], seen["worker_pool"]["tracker_capacity"]) == (
            200, "healthy", 256,
        )  # fmt: skip
    assert host.get("/nothing")[0] == 404
    host.memory.plane.host_state = HostState.DRAINING
    assert host.get("/ready")[0] == 503
    assert host.get("/health")[0] == 503
    assert host.get("/live")[0] == 200


def test_a_scrape_is_valid_while_a_worker_dies(host: ControlHost) -> None:
    """The exposition parses before, during and after, and sums over the seats."""
    for n, shard in enumerate(host.shards):
        shard.metrics.counter("orchestrator_requests_total", "Calls.", stage="rag").inc(n + 1)
        shard.metrics.histogram("orchestrator_stage_duration_seconds", "Time.", (0.1, 1.0),
                                stage="rag").observe(0.5)  # fmt: skip
    for step in range(3):
        status, page, kind = host.get("/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        families = {f.name: f for f in text_string_to_metric_families(page.decode())}
        assert families["orchestrator_requests"].samples[0].value == 3
        assert families["tpo_worker_restarts"].samples[0].value == min(step, 2)
        if step < 2:
            host.shards[step].die()
    assert host.get("/ready")[0] == 503


def test_a_hung_reader_of_the_ops_port_does_not_hold_the_loop(host: ControlHost) -> None:
    """Thirty half-sent requests later the beat still moves and others are answered."""
    address = host.ops.removeprefix("http://").split(":")
    stuck = [socket.create_connection((address[0], int(address[1]))) for _ in range(30)]
    for connection in stuck:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    lines = host.memory.plane.seat(CONTROL)
    before = lines.beat
    assert host.get("/live")[0] == 200
    wait_for(lambda: lines.beat > before + 3, what="beats")
    for connection in stuck:
        connection.close()
