"""Rings between shards whose ends die between any two steps, whose bytes flip, whose bells fail.

The words are checked one by one: a call ends with the right answer or with an error, never with
a wrong answer and never with silence.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import closing, suppress
from functools import partial
from mmap import mmap
from random import Random

import psutil
import pytest

from tests.chaos.conftest import StartHost
from tests.support.effort import LONG
from tests.support.host import Host, kill, metric
from tests.support.innards import bell, needs_linux, shared
from tests.support.raw import RawClient, chat
from tests.support.shards import CHAT, connect_to, render, session_on
from tests.support.talk import Talk
from tests.support.toml import ECHO, section
from tests.support.wait import quickest, wait_for
from tpo_mp.shm.ring_layout import DATA, HEAD, TAIL, ring_capacity

pytestmark = pytest.mark.timeout(180)

RESTLESS = section("[supervisor]", intensity=1000)
STEPS = (
    "claimed",
    "payload_half",
    "before_commit",
    "after_commit",
    "before_doorbell",
    "in_consume",
)


# -- deaths between any two steps ----------------------------------------------------------------


def dies_at(step: str, prob: float) -> str:
    """Arm one step; the first hits are let pass."""
    # The supervisor rings bells too, a few per death, and must not be the one who dies.
    skip = 4000 if step == "before_doorbell" and LONG else 400
    return f"ring.{step}=kill9:{prob}:{skip if step == 'before_doorbell' else 40}"


def die_and_talk(
    start_host: StartHost, rng: Random, spec: str, deaths: int, patience_s: float
) -> None:
    """Talk until that many processes died where told; then judge every word."""
    host = start_host(
        config=ECHO + RESTLESS, env={"TPO_TEST": "1", "TPO_FAILPOINTS": spec}, ready_s=60
    )
    with Talk(host.url, rng, patience_s=patience_s) as talk:
        wait_for(lambda: len(_deaths(host)) >= deaths, 150, f"{deaths} deaths", every_s=0.05)
        talk.stop()
        talk.check()
    died = _deaths(host)
    print(f"{len(died)} deaths, {talk.outcomes()['ok']} right answers")
    assert {event["signal"] for event in died} == {"SIGKILL"}, died
    assert psutil.pid_exists(host.pid), "the supervisor lives"
    assert talk.outcomes()["ok"] > deaths
    host.close()


def _deaths(host: Host) -> list[dict[str, object]]:
    return host.events("worker_died") + host.events("control_died")


def test_processes_killed_at_every_step_of_a_ring_falsify_and_hold_up_nothing(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """Twelve deaths at the six steps of push and drain, one as likely as another."""
    spec = ";".join(dies_at(step, 0.008) for step in STEPS)
    die_and_talk(start_host, rng, spec, 12, 5 + 2 * slack)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", STEPS)
def test_two_hundred_deaths_at_one_step_falsify_and_hold_up_nothing(
    start_host: StartHost, rng: Random, slack: float, step: str
) -> None:
    """The long form of the above, step by step."""
    die_and_talk(start_host, rng, dies_at(step, 0.01), 200, 5 + 2 * slack)


# -- flipped bytes -------------------------------------------------------------------------------


class Flipper:
    """Flips bits in the live rings between both shards and control."""

    def __init__(self, memory: mmap, rng: Random, seats: int) -> None:
        self._memory = memory
        self._rng = rng
        self._seats = seats
        self._capacity = ring_capacity(seats)
        self.flips = 0

    def flip(self) -> None:
        """Flip one bit, as often among a ring's words as near its newest record."""
        rng = self._rng
        source, target = rng.sample((0, 1, self._seats - 1), 2)
        ring = (source * (self._seats - 1) + target - (target > source)) * (DATA + self._capacity)
        kind = rng.random()
        if kind < 0.25:
            at = ring + TAIL * 8 + rng.randrange(24)
        elif kind < 0.35:
            at = ring + HEAD * 8 + rng.randrange(8)
        elif kind < 0.4:
            at = ring + rng.randrange(DATA)
        else:
            (tail,) = struct.unpack_from("Q", self._memory, ring + TAIL * 8)
            at = ring + DATA + (tail + rng.randrange(-3000, 200)) % self._capacity
        self._memory[at] ^= 1 << rng.randrange(8)
        self.flips += 1


def flip_and_talk(host: Host, rng: Random, flips: int, slack: float) -> None:
    """Flip while everybody talks; judge every word, then how soon all is well again."""
    host.warm()
    with closing(shared(host, "tpo-rings")) as memory, Talk(host.url, rng) as talk:
        flipper = Flipper(memory, rng, seats=host.workers + 3)
        while flipper.flips < flips:
            talk.more(1)
            for _ in range(4):
                flipper.flip()
        ended_at = time.monotonic()
        wait_for(lambda: _well(host), 20 * slack, "every shard serving every session", every_s=0.0)
        back_s = time.monotonic() - ended_at
        talk.stop()
        talk.check()
    damage = metric(host.ask("/metrics").body.decode(), "tpo_ring_corrupt_total")
    print(f"{flips} flips, {damage:.0f} noticed, service back after {back_s:.3f} s")
    assert damage > 0
    assert back_s < 2 * slack
    assert not _deaths(host)
    assert host.status()["restarts"] == 0


def _well(host: Host) -> bool:
    """Whether a call and a stream of every kind of session is answered, on any connection."""
    with RawClient(host.url) as client:
        for number in range(16):
            body = chat(f"well {number}", stream=bool(number % 2))
            reply = client.post_json(CHAT, body, {"X-Session-Id": f"well-{number}"})
            if reply.status != 200 or b'"error"' in reply.body:
                return False
    return True


@pytest.mark.alone
def test_flipped_bits_in_live_rings_are_noticed_and_healed(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """A thousand flips while calls are forwarded: nobody dies, no wrong word, soon well again."""
    needs_linux()
    host = start_host(config=ECHO)
    flip_and_talk(host, rng, 1000, slack)
    # Whoever attaches next must find rings too, even if the words that say so were hit.
    with closing(shared(host, "tpo-rings")) as memory:
        memory[:16] = rng.randbytes(16)
    victim = host.slot(1)["pid"]
    kill(victim)
    host.replaced(1, victim, 10 * slack)
    host.warm()
    wait_for(lambda: _well(host), 10 * slack, "a host with a new shard")
    host.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_flipped_bits_are_noticed_and_healed(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """The long form of the above."""
    needs_linux()
    host = start_host(config=ECHO)
    flip_and_talk(host, rng, 10_000, slack)
    host.end()


# -- bells ---------------------------------------------------------------------------------------


def forwarded_calls(host: Host, number: int) -> list[float]:
    """Seconds that forwarded calls took, one after the other."""
    session = {"X-Session-Id": session_on(host.url, 1)}
    took = []
    with connect_to(host.url, 0) as client:
        for n in range(number):
            began = time.monotonic()
            reply = client.post_json(CHAT, chat(f"call {n}"), session)
            took.append(time.monotonic() - began)
            assert reply.status == 200, reply
            assert reply.headers["x-tpo-shard"] == "1"
    return sorted(took)


@pytest.mark.alone
def test_bells_that_never_ring_cost_a_recheck_and_nothing_else(
    start_host: StartHost, slack: float
) -> None:
    """Every bell dropped: calls still cross both ways, each within a beat and a recheck."""
    host = start_host(
        config=ECHO, env={"TPO_TEST": "1", "TPO_FAILPOINTS": "ring.before_doorbell=drop"}
    )
    host.warm()
    took = forwarded_calls(host, 40)
    print(f"without bells: median {took[20] * 1e3:.1f} ms, longest {took[-1] * 1e3:.1f} ms")
    assert took[20] > 0.005, "the bells rang"
    assert took[20] < 0.1 * slack
    assert took[-1] < 0.5 * slack
    host.end()


@pytest.mark.alone
def test_a_million_bells_for_nothing_keep_nobody_from_work(
    start_host: StartHost, mode: dict[str, str], slack: float
) -> None:
    """Rung without end, a shard goes on serving; then it is as idle as before."""
    needs_linux()
    host = start_host(config=ECHO)
    host.warm()
    worker = psutil.Process(host.slot(1)["pid"])
    calm = forwarded_calls(host, 20)[10]
    fd = bell(host, host.slot(1)["seat"], portable=bool(mode))
    one = (1).to_bytes(8, "little")
    number = 1_000_000 if LONG else 200_000
    rung, took = 0, []
    session = {"X-Session-Id": session_on(host.url, 1)}
    try:
        with connect_to(host.url, 0) as client:
            while rung < number:
                began = time.monotonic()
                client.send(_request(client, session))
                for _ in range(2000):
                    rung += _ring(fd, one)
                assert client.read_reply("POST").status == 200
                took.append(time.monotonic() - began)
    finally:
        os.close(fd)
    idle = min(quickest(partial(_cpu_share, worker), 1, 0.2))
    middle = sorted(took)[len(took) // 2]
    print(
        f"{rung} bells: calls {middle * 1e3:.1f} ms (calm {calm * 1e3:.1f} ms), then {idle:.0%} CPU"
    )
    assert rung >= number, "the bell was not there to be rung"
    assert middle < 0.1 * slack
    assert host.slot(1)["pid"] == worker.pid
    host.stop()


def _cpu_share(process: psutil.Process) -> float:
    before, began = process.cpu_times(), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 0.5, 5, "half a second of peace")
    after, took_s = process.cpu_times(), time.monotonic() - began
    return (after.user + after.system - before.user - before.system) / took_s


def _request(client: RawClient, headers: dict[str, str]) -> bytes:
    return render(client.host, chat("under the bells"), headers, "fast")


def _ring(fd: int, one: bytes) -> int:
    with suppress(BlockingIOError):  # a full pipe is a bell that rings already
        os.write(fd, one)
    return 1
