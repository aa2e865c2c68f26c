"""The end that was ordered: open streams finish, late ones are told, nobody overstays."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from random import Random

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, metric
from tests.support.load import Crowd, Load, flowing
from tests.support.raw import ask
from tests.support.wait import accepts, wait_for

STREAMS = 200
WORDS = "w " * 12
ECHO = """
[server]
drain_s = {drain_s}

[[backends]]
name = "echo"
kind = "echo"
delay_ms = {delay_ms}
"""


def slow_echo(delay_ms: int, drain_s: float = 30) -> str:
    """A gateway whose streams take their time."""
    return ECHO.format(delay_ms=delay_ms, drain_s=drain_s)


def ends(host: Host, ordered_at: float, timeout_s: float) -> float:
    """Wait for exit code 0 with nobody left; answer how long it took since the order."""
    session = host.pid
    code = host.wait(timeout_s)
    took_s = time.monotonic() - ordered_at
    print(f"ended after {took_s:.2f} s")
    assert code == 0, host.stderr
    wait_for(lambda: not host.processes() - {session}, 10, "no process left")
    assert "Traceback" not in host.stderr
    return took_s


@pytest.mark.alone
def test_term_lets_two_hundred_streams_finish(
    start_host: StartHost, slack: float, mode: dict[str, str]
) -> None:
    """New connections are refused at once; every stream ends with [DONE]; exit 0 soon after."""
    group = "TPO_PORTABLE" in mode
    # The streams may be over before the order on a machine that stands still: longer ones then.
    assert any(
        drain_two_hundred(start_host, slack, delay_ms=150 << turn, whole_group=group)
        for turn in range(3)
    )


@pytest.mark.slow
def test_term_lets_two_hundred_streams_of_ten_seconds_finish(
    start_host: StartHost, slack: float, mode: dict[str, str]
) -> None:
    """The long form of the above."""
    assert drain_two_hundred(start_host, slack, delay_ms=840, whole_group="TPO_PORTABLE" in mode)


def drain_two_hundred(
    start_host: StartHost, slack: float, delay_ms: int, *, whole_group: bool
) -> bool:
    """Drain a host of two hundred streams of twelve words with that much between two of them.

    Answers whether all of them still ran when the port was closed.
    """
    host = start_host(config=slow_echo(delay_ms))
    sessions = [f"session-{i}" for i in range(64)]
    with Crowd(host.url, STREAMS, text=WORDS, sessions=sessions) as crowd:
        crowd.begun()
        wait_for(lambda: forwarded(host) > STREAMS, 10, "streams that are forwarded")
        ordered_at = time.monotonic()
        os.killpg(host.pid, signal.SIGTERM) if whole_group else host.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts("127.0.0.1", host.port), 1.0 * slack, "a refused connection")
        closed_s = time.monotonic() - ordered_at
        in_time = crowd.open()
        attempts = crowd.ended()
        last_s = max(a.ended_at for a in attempts) - ordered_at
    print(f"port closed after {closed_s:.3f} s, last stream after {last_s:.2f} s")
    assert crowd.outcomes() == {"ok": STREAMS}
    assert all(a.done for a in attempts)
    assert ends(host, ordered_at, 30) < last_s + 2.0 * slack
    assert host.ports_free()
    assert not host.shared_names()
    return in_time


def forwarded(host: Host) -> float:
    """How many records went from shard to shard."""
    return metric(ask(host.ops, "/metrics").body.decode(), "tpo_ring_records_total")


def test_requests_on_kept_connections_are_answered_while_draining(
    start_host: StartHost, rng: Random
) -> None:
    """A kept connection is never cut under a request: it is told to close, or 503."""
    host = start_host()
    with Load(host.url, rng, clients=12) as load:
        ordered_at = time.monotonic()
        host.send_signal(signal.SIGTERM)
        wait_for(lambda: load.count("refused") > 20, 10, "refused connections")
        ends(host, ordered_at, 20)
        load.stop()
    print(load.outcomes())
    # A new connection in the very moment in which the port closes is refused or reset.
    broken = [a for a in load.attempts if a.outcome in ("cut", "hung")]
    assert not [a for a in broken if a.reused or a.first_at], load.outcomes()
    assert len(broken) <= 3, load.outcomes()
    assert {a.status for a in load.attempts if a.outcome == "error"} <= {503}


def test_connections_queued_when_term_comes_are_answered(start_host: StartHost) -> None:
    """They were accepted by the kernel before the order: each gets an answer, none a reset."""
    for _ in range(5):
        host = start_host()
        host.warm()
        workers = host.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        with Crowd(host.url, 60, stream=False) as crowd:
            wait_for(lambda: all(a.phase == "head" for a in crowd.attempts), 5, "sent requests")
            ordered_at = time.monotonic()
            host.send_signal(signal.SIGTERM)
            host.event("draining")
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            attempts = crowd.ended()
        print(crowd.outcomes())
        if not host.events("worker_hangs"):
            break  # else they stood for so long on a slow machine that they counted as hung
        host.wait()
        host.close()
    assert {a.outcome for a in attempts} <= {"ok", "error"}, crowd.outcomes()
    assert {a.status for a in attempts} <= {200, 503}
    ends(host, ordered_at, 20)


def test_the_port_closes_although_a_silent_process_holds_it(start_host: StartHost) -> None:
    """A stopped spare keeps its copies of the listeners: nothing may queue there to be reset."""
    host = start_host(config=slow_echo(100))
    host.warm()
    spare = host.status()["spare"]["pid"]
    with ExitStack() as running:
        crowd = flowing(running, lambda: Crowd(host.url, 4, text=WORDS))
        os.kill(spare, signal.SIGSTOP)
        ordered_at = time.monotonic()
        host.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts("127.0.0.1", host.port), 10, "a refused connection")
        there, checked_at = spare in host.processes(), time.monotonic()
        # All is over soon: on a machine that stood still, perhaps before anybody looked.
        assert there or checked_at - ordered_at > 1, "its end did not close the port"
        crowd.ended()
    assert crowd.outcomes() == {"ok": 4}
    ends(host, ordered_at, 20)


@pytest.mark.alone
def test_streams_past_the_drain_deadline_are_told(start_host: StartHost, slack: float) -> None:
    """At the deadline: an error event and a proper end; exit 0 within a second; a dead letter."""
    drain_s = 1.0
    host = start_host(config=slow_echo(1000, drain_s))
    with Crowd(host.url, 20, text=WORDS) as crowd:
        crowd.flowing()
        ordered_at = time.monotonic()
        host.send_signal(signal.SIGTERM)
        attempts = crowd.ended()
        told_s = [a.ended_at - ordered_at for a in attempts]
    print(f"told after {min(told_s):.2f} to {max(told_s):.2f} s: {crowd.outcomes()}")
    assert {a.outcome for a in attempts} == {"error"}
    assert all(a.error and a.error["code"] == "draining" for a in attempts)
    assert not any(a.done for a in attempts), "an error is no success"
    assert min(told_s) >= drain_s - 0.1
    assert ends(host, ordered_at, 20) <= drain_s + 1.0 * slack
    host.close()
    host.start()
    host.lettered({a.id for a in attempts}, 5 * slack)
    host.stop()


@pytest.mark.alone
@pytest.mark.parametrize("quick", [signal.SIGTERM, signal.SIGINT])
def test_a_quick_stop_takes_two_seconds(
    start_host: StartHost, slack: float, mode: dict[str, str], quick: signal.Signals
) -> None:
    """A second TERM, INT (to the group) or QUIT: streams get their error event, exit 0."""
    if quick is signal.SIGINT and "TPO_PORTABLE" in mode:
        quick = signal.SIGQUIT
    signals = [quick] * (2 if quick is signal.SIGTERM else 1)
    host = start_host(config=slow_echo(1000))
    with Crowd(host.url, 20, text=WORDS) as crowd:
        crowd.flowing()
        for sent, number in enumerate(signals, 1):
            ordered_at = time.monotonic()
            os.killpg(host.pid, number) if number is signal.SIGINT else host.send_signal(number)
            host.logged("signal", sent)
        attempts = crowd.ended()
        took_s = ends(host, ordered_at, 20)
    assert took_s <= 2.0 * slack
    assert {a.outcome for a in attempts} == {"error"}, crowd.outcomes()
    assert all(a.error and a.error["code"] == "draining" for a in attempts)


def test_a_group_signal_at_any_moment_of_the_boot_ends_it(
    start_host: StartHost, rng: Random, mode: dict[str, str]
) -> None:
    """Ctrl-C while interpreters start: no process hangs, none is left, no traceback."""
    number = signal.SIGTERM if "TPO_PORTABLE" in mode else signal.SIGINT
    host = start_host()
    host.warm()
    victim, spare = host.slot(0)["pid"], host.status()["spare"]["pid"]
    os.kill(victim, signal.SIGKILL)  # the spare takes its place, and another starts to boot
    wait_for(lambda: host.status()["spare"].get("pid") not in (None, spare), 5, "one that boots")
    wait_for(lambda: rng.random() < 0.1, 5, "a random moment of the boot")
    ordered_at = time.monotonic()
    os.killpg(host.pid, number)
    ends(host, ordered_at, 20)
