"""Workers that are killed, crash or leave: nothing accepted is lost, and the slot is soon back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from random import Random

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill, logged_at
from tests.support.load import Crowd, Load
from tests.support.toml import NO_RETRIES
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["*"]
"""


def kills(host: Host, upstream: Upstream, rng: Random, number: int) -> tuple[list[float], int]:
    """Kill one worker after the other at random moments.

    Answers the instants of the kills, and how many connections the killed held then: a call that
    failed was one of those.
    """
    instants, in_flight = [], 0
    for _ in range(number):
        host.warm()
        victim = host.slot(rng.randrange(2))["pid"]
        wait_for(lambda: rng.random() < 0.1, 5, "a random moment")
        # Stopped while it is counted, so that it takes nothing more.
        kill(victim, signal.SIGSTOP)
        in_flight += host.connections_of(victim, host.port, upstream.port)
        instants.append(time.time())
        kill(victim)
        wait_for(lambda: host.events("worker_died")[len(instants) - 1 :], 5, "the death noticed")
    return instants, in_flight


def check_kills(
    host: Host, load: Load, upstream: Upstream, instants: list[float], in_flight: int, slack: float
) -> None:
    """Check the promises about kills under load."""
    failed = load.failed()
    print(f"{len(instants)} kills: {load.outcomes()}, {in_flight} in flight; lost sight of:")
    for attempt in failed:
        print(f"  {attempt.id} {attempt.outcome} in {attempt.phase}: {attempt.why}")
    assert not [a for a in failed if a.outcome == "refused"]
    assert len(failed) <= in_flight
    accepted = {seen.json()["messages"][-1]["content"].split()[0] for seen in list(upstream.seen)}
    host.check_ledger(load.attempts, accepted, within_s=2.0 * slack)
    back = host.events("worker_replaced")
    took_s = sorted(
        logged_at(event) - killed_at for event, killed_at in zip(back, instants, strict=True)
    )
    print(f"slots back after {[round(s, 3) for s in took_s]} s")
    assert took_s[-1] < 0.5 * slack
    assert len(host.events("worker_died")) == len(instants)


@pytest.mark.alone
def test_killed_workers_lose_no_accepted_call(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float, mode: dict[str, str]
) -> None:
    """Six kills under load: the ledger balances, no connection is refused, slots are soon back."""
    # All kills may hit one slot, and more of them than its intensity would make it back off.
    config = RELAY.format(url=upstream.url) + "\n[supervisor]\nintensity = 10\n"
    host = start_host(config=config)
    upstream.play(first_s=0.02, delay_s=0.01)
    with Load(host.url, rng, model="up-1") as load:
        instants, in_flight = kills(host, upstream, rng, 4 if "TPO_PORTABLE" in mode else 6)
        load.more(50)
        load.stop()
        host.warm()
        check_kills(host, load, upstream, instants, in_flight, slack)
    host.end()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_kills_lose_no_accepted_call(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float
) -> None:
    """The long form: 0 bad of 500 kills bounds the chance of a loss below 0.6 %."""
    config = RELAY.format(url=upstream.url) + "\n[supervisor]\nintensity = 1000\n"
    host = start_host(config=config)
    upstream.play(first_s=0.02, delay_s=0.01)
    with Load(host.url, rng, model="up-1", pause_s=0.05) as load:
        instants, in_flight = kills(host, upstream, rng, 500)
        load.stop()
        host.warm()
        check_kills(host, load, upstream, instants, in_flight, slack)
    host.end()


def test_every_call_of_a_dead_worker_is_one_dead_letter(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Killed in the middle of streams: broken bodies, one letter per call within two seconds."""
    room = "[server]\nmax_open_calls = 30\n"
    host = start_host(config=room + RELAY.format(url=upstream.url))
    host.warm()
    upstream.play(chunks=300, delay_s=0.1, pad_bytes=400)
    with Crowd(host.url, 24, model="up-1", text="long") as crowd:
        crowd.flowing()
        # Where all slots share one listener, one worker may have taken every connection.
        slot, _ = Counter(a.slot for a in crowd.attempts).most_common(1)[0]
        victim = host.slot(slot)["pid"]
        theirs = {a.id for a in crowd.attempts if a.slot == slot}
        kill(victim)
        killed_at = time.monotonic()
        host.lettered(theirs, 2 * slack)
        print(f"{len(theirs)} letters after {time.monotonic() - killed_at:.2f} s")
        cut = [a for a in crowd.attempts if a.id in theirs]
        wait_for(lambda: all(a.outcome == "cut" for a in cut), 10, "the cuts seen")
        assert not any(a.done for a in cut)
        assert {a.outcome for a in crowd.attempts if a.id not in theirs} <= {"open"}
    letters = host.letters()
    assert {letter["reason"] for letter in letters} == {"worker_lost"}
    one = host.ask(f"/api/v1/dlq/{letters[0]['request_id']}")
    assert "long" in one.body.decode()
    host.replaced(slot, victim)
    # The dead worker's seat stays empty; what it had open takes nobody's room.
    wait_for(lambda: not pending(host), 20, "nothing open any more")
    upstream.play(first_s=0.5)
    wait_for(lambda: has_room(host, 24), 60, "room for as many calls as before")
    host.end()


def pending(host: Host) -> int:
    """How many calls the host says are open."""
    return int(host.ask("/api/v1/pipeline/status").json()["pending_requests"])


def has_room(host: Host, calls: int) -> bool:
    """Whether so many calls at once are all answered."""
    with Crowd(host.url, calls, model="up-1", text="again", stream=False) as crowd:
        return all(attempt.status == 200 for attempt in crowd.ended())


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_failed_a_moment_before_its_worker_died_is_a_letter(
    start_host: StartHost, upstream: Upstream, slack: float, stream: bool
) -> None:
    """Killed with the error just sent: its letter may not have left the worker yet."""
    host = start_host(config=NO_RETRIES + RELAY.format(url=upstream.url))
    upstream.play("status", status=500)
    names = [f"failed-{turn}" for turn in range(3)]
    for name in names:
        host.warm()
        pids = host.worker_pids()
        body = {"model": "up-1", "messages": [{"role": "user", "content": name}], "stream": stream}
        reply = host.ask("/v1/chat/completions", body, {"X-Request-Id": name})
        slot = int(reply.headers["x-tpo-shard"])
        kill(pids[slot])
        assert reply.status == 502
        host.replaced(slot, pids[slot])
    host.lettered(set(names), 2 * slack)
    host.end()


def test_a_letter_says_how_far_its_stream_came(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Killed in mid-stream: what was counted had been sent, and what it missed is not much.

    Never more than the client received and one event, which the death may have cut; less than that
    by what the last beats before the death did not see: one of 50 ms, so one or two events, and
    twenty are granted to a machine that is busy.
    """
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    upstream.play(chunks=400, delay_s=0.05, pad_bytes=400)
    with Crowd(host.url, 12, model="up-1") as crowd:
        crowd.flowing()
        wait_for(lambda: all(len(a.events) > 10 for a in crowd.attempts), 20, "ten events each")
        slot, _ = Counter(a.slot for a in crowd.attempts).most_common(1)[0]
        theirs = {a.id: a for a in crowd.attempts if a.slot == slot}
        kill(host.slot(slot)["pid"])
        host.lettered(set(theirs), 2 * slack)
        wait_for(lambda: all(a.outcome == "cut" for a in theirs.values()), 10, "the cuts seen")
    for entry in host.letters():
        letter = host.ask_store(f"/api/v1/dlq/{entry['request_id']}")
        received = theirs[letter["client_request_id"]].body
        event = len(received) // max(1, received.count(b"\n\n")) + 1
        print(f"sent {letter['bytes_sent']}, received {len(received)}, an event {event}")
        assert 0 < letter["bytes_sent"] <= len(received) + event
        assert len(received) - letter["bytes_sent"] <= 20 * event
    host.end()


def test_a_crash_is_named_and_the_worker_replaced(start_host: StartHost, rng: Random) -> None:
    """A segmentation fault or an abort leaves its signal and a traceback in the log."""
    host = start_host()
    with Load(host.url, rng, clients=8) as load:
        for slot, number in enumerate((signal.SIGSEGV, signal.SIGABRT)):
            host.warm()
            victim = host.slot(slot)["pid"]
            kill(victim, number)
            died = host.event("worker_died", pid=victim)
            assert died["signal"] == number.name
            host.replaced(slot, victim)
            load.more(20)
        load.stop()
        assert load.count("refused", "hung") == 0
    for words in ("Segmentation fault", "Aborted"):
        assert f"Fatal Python error: {words}" in host.stderr
    host.end()


def test_a_worker_that_leaves_by_itself_is_replaced(start_host: StartHost) -> None:
    """Exit code 0 without an order is a death like any other."""
    host = start_host(env={"TPO_TEST": "1", "TPO_FAILPOINTS": "inflight.accepted=exit:1:20"})
    host.warm()
    victims = set(host.worker_pids())
    with Crowd(host.url, 60, stream=False) as crowd:
        crowd.ended()
    died = host.event("worker_died", exit_code=0)
    assert died["pid"] in victims
    assert host.status()["restarts"] >= 1
    wait_for(lambda: host.ask("/ready").json()["degraded"] == [], 10, "a whole host")
    host.end()


def test_sessions_of_a_dead_worker_are_served_elsewhere_meanwhile(
    start_host: StartHost, upstream: Upstream
) -> None:
    """Calls under way on the dead shard for a living one are tried again; no byte was sent."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    killed = threading.Event()
    upstream.play(until=killed)
    sessions = [f"session-{i}" for i in range(24)]
    with Crowd(host.url, 48, model="up-1", stream=False, sessions=sessions) as crowd:
        wait_for(lambda: upstream.counters.open == 48, 10, "every call upstream")
        victim = host.slot(0)["pid"]
        held = host.connections_of(victim, host.port)
        kill(victim)
        killed.set()
        attempts = crowd.ended()
    failed = [a for a in attempts if a.outcome != "ok"]
    assert len(failed) <= held
    assert upstream.counters.requests > 48, "some were tried again"
    assert all(a.outcome == "cut" for a in failed), crowd.outcomes()
    host.end()


def test_both_workers_killed_at_once_refuse_nobody(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """With no worker left, connections wait in the supervisor's listeners until one is back."""
    host = start_host()
    host.warm()
    for pid in [*host.worker_pids(), host.status()["spare"]["pid"]]:
        os.kill(pid, signal.SIGKILL)
    with Crowd(host.url, 50, stream=False, patience_s=20) as crowd:
        crowd.ended()
        assert crowd.outcomes() == {"ok": 50}
    host.warm()
    host.end()
