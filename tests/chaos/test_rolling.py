"""A rolling restart on the same sockets: every process is another one, and no client notices."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from random import Random
from typing import Any

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill
from tests.support.load import Crowd, Load, flowing
from tests.support.raw import RawClient
from tests.support.shards import shard_of
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tpo_mp.shm.callid import CallIds

RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["*"]
"""
STREAMS = 200


def children(host: Host) -> list[dict[str, Any]]:
    """Slots, spare and control."""
    seen = host.status()
    return [*seen["slots"], seen["spare"], seen["control"]]


def everyone(host: Host) -> set[int]:
    """Process ids of slots, spare and control."""
    return {child["pid"] for child in children(host)}


def check_whole(host: Host) -> None:
    """Each child has a seat of its own, and nobody else is left of the old generation."""
    wait_for(lambda: host.processes() == everyone(host) | {host.pid}, 10, "no process but these")
    seats = [child["seat"] for child in children(host)]
    assert len(set(seats)) == len(seats) == host.workers + 2, seats
    assert host.status()["retiring"] == []


def ended(host: Host, pid: int, *names: str) -> list[dict[str, Any]]:
    """What the log says of its end: how it died, or that it left."""
    names = names or ("worker_died", "process_ended")
    return [event for name in names for event in host.events(name) if event.get("pid") == pid]


def died(host: Host, slot: int) -> bool:
    """Kill who serves the slot; false where nobody does, or it had ended by itself."""
    victim = host.slot(slot)["pid"]
    if victim is None:
        return False
    with suppress(ProcessLookupError):
        kill(victim)
        wait_for(lambda: ended(host, victim), 30, "its end")
    return bool(ended(host, victim, "worker_died"))


def test_a_rolling_restart_ends_no_stream_and_fails_no_request(
    start_host: StartHost, upstream: Upstream, rng: Random, mode: dict[str, str]
) -> None:
    """Two hundred streams, each owned by one shard and served by another, all end [DONE]."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    before, epochs = everyone(host), {child["seat"]: child["epoch"] for child in children(host)}
    seats = [slot["seat"] for slot in host.status()["slots"]]
    with RawClient(host.url) as client:
        homes = {f"s-{i}": shard_of(client, f"s-{i}", "up-1") for i in range(64)}
    upstream.play(first_s=0.01)
    script = {"chunks": 40, "delay_s": 0.12, "pad_bytes": 400}
    body = {"metadata": {"upstream": script}}
    with ExitStack() as running:
        crowd = flowing(
            running, lambda: Crowd(host.url, STREAMS, model="up-1", homes=homes, **body)
        )
        with Load(host.url, rng, clients=12, model="up-1") as load:
            # To the supervisor, or to everyone in its group: it means the supervisor alone.
            if "TPO_PORTABLE" in mode:
                os.killpg(host.pid, signal.SIGUSR2)
            else:
                host.send_signal(signal.SIGUSR2)
            host.event("rolling_restart_ended", 40)
            load.more(20)
            load.stop()
        attempts = crowd.ended()
    places = [(CallIds.parse(a.call_id), seats[a.slot]) for a in attempts]
    assert all(owner and owner.seat != server for owner, server in places), "each was forwarded"
    assert {server for _, server in places} == set(seats), "both ways"
    print(load.outcomes(), crowd.outcomes())
    assert not load.failed(), [(a.outcome, a.phase, a.why) for a in load.failed()]
    assert crowd.outcomes() == {"ok": STREAMS}
    assert all(a.done for a in attempts)
    host.warm()
    check_whole(host)
    assert not before & everyone(host), "every process is another one"
    again = [child for child in children(host) if child["seat"] in epochs]
    assert all(child["epoch"] > epochs[child["seat"]] for child in again), again
    assert not host.events("worker_died")
    assert host.status()["restarts"] == 0
    host.stop()


def test_a_worker_that_dies_in_a_rolling_restart_is_replaced(
    start_host: StartHost, rng: Random
) -> None:
    """The restart ends one way or the other, and the host is whole afterwards."""
    host = start_host()
    host.warm()
    with Load(host.url, rng, clients=8) as load:
        host.send_signal(signal.SIGUSR2)
        host.event("rolling_restart")
        wait_for(lambda: rng.random() < 0.05, 5, "a random moment of the restart")
        # Who serves the slot may be done and gone, also by itself, before the kill comes.
        wait_for(lambda: died(host, 1), 60, "a worker that died")
        host.event("rolling_restart_ended", 30)
        host.warm()
        load.more(20)
        load.stop()
        assert load.count("refused", "hung") == 0, load.outcomes()
    check_whole(host)
    assert host.ask("/ready").json()["degraded"] == []
    host.end()
