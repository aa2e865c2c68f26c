"""Control stopped or killed under load: no request waits for it, and its port is soon back."""

from __future__ import annotations

import signal
import time
from random import Random

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill, logged_at
from tests.support.load import Crowd, Load
from tests.support.raw import ClosedEarlyError, ask
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

OPS_BACK_S = 5.0
RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["*"]
"""


def ops_answers(host: Host) -> bool:
    """Whether the ops port answers within a second."""
    try:
        return ask(host.ops, "/ready").status == 200
    except (OSError, ClosedEarlyError):
        return False


def hurt(host: Host, number: signal.Signals, slack: float) -> None:
    """Take control away and wait for its successor; the ops port is soon back."""
    host.warm()
    victim = host.control_pid
    hurt_at = time.time()
    kill(victim, number)
    died = host.event("control_died", 20, pid=victim)
    wait_for(lambda: ops_answers(host), 20, "the ops port")
    back_s = time.time() - hurt_at
    print(f"dead after {logged_at(died) - hurt_at:.2f} s, back after {back_s:.2f} s")
    assert back_s <= OPS_BACK_S * slack


@pytest.mark.alone
def test_no_request_fails_without_control(start_host: StartHost, rng: Random, slack: float) -> None:
    """Killed, then stopped: workers serve on; another is there within five seconds."""
    host = start_host()
    host.warm()
    workers = host.worker_pids()
    with Load(host.url, rng, clients=12) as load:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            hurt(host, number, slack)
            load.more(50)
        load.stop()
        print(load.outcomes())
        assert not load.failed()
    assert host.worker_pids() == workers
    assert host.event("control_hangs")["silent_s"] <= 3.0 * slack
    host.end()


def test_letters_written_while_control_is_away_arrive(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """They wait with the workers until another control takes them."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    upstream.play("status", status=500)
    kill(host.control_pid, signal.SIGSTOP)
    with Crowd(host.url, 40, model="up-1", stream=False) as crowd:
        attempts = crowd.ended()
    assert {a.outcome for a in attempts} == {"error"}, crowd.outcomes()
    host.event("control_died")
    ids = {a.id for a in attempts}
    host.lettered(ids, 10 * slack)
    host.end()


def test_control_and_a_worker_killed_together_lose_nothing(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Orphans wait in shared memory for the next control."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    upstream.play(chunks=300, delay_s=0.1, pad_bytes=400)
    with Crowd(host.url, 20, model="up-1") as crowd:
        crowd.flowing()
        workers = host.worker_pids()
        kill(host.control_pid)
        for pid in workers:
            kill(pid)
        attempts = crowd.ended()
    assert {a.outcome for a in attempts} == {"cut"}, crowd.outcomes()
    host.check_ledger(attempts, [a.id for a in attempts], within_s=5 * slack)
    assert set(host.letters_by_request().values()) == {1}
    host.end()
