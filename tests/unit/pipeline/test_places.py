"""Places over several processes: exact, whoever dies and whatever gets lost on the way."""

from __future__ import annotations

import dataclasses
import gc
import os
import weakref
from collections import defaultdict
from random import Random
from typing import Any

from tests.support.fake_env import FakeShares, FakeWorld, SilentMetrics, SilentSeries
from tests.support.fake_peers import FakeWire
from tpo_mp.pipeline.lanes import Waiter
from tpo_mp.pipeline.place_math import LimitBounds
from tpo_mp.pipeline.place_report import EVERY_S, HELD_GAUGE, LIMIT_GAUGE
from tpo_mp.pipeline.places import (
    ASKED_AGAIN_S,
    AUTO,
    TICK_S,
    Door,
    PlaceDesk,
    PlaceTicket,
    desk_of,
)


class Held:
    """A call on one process: waiting, running or over."""

    def __init__(self, process: Process, name: str, limit: int, **facts: Any) -> None:
        self.process = process
        self.door: Door = process.door(name)
        self.running = False
        self.refused: tuple[float, bool] | None = None
        self.ticket: PlaceTicket | None = None
        if self.door.enter(limit):
            self.running = True
        else:
            waiter = Waiter(None, **({"arrived_at": process.world.now} | facts))
            self.ticket = process.desk.wait(self.door, waiter, 5.0, self.turn, self.refuse)

    def turn(self) -> None:
        """It has a place."""
        assert not self.running
        self.running = True

    def refuse(self, wait_s: float, early: bool) -> None:
        """It gets none."""
        self.refused = (wait_s, early)

    def end(self) -> None:
        """Its reply is complete, or its client left."""
        if self.running:
            self.running = False
            self.door.leave()
        elif self.ticket is not None:
            self.ticket.cancel()


class Told(SilentMetrics):
    """The gauges of one process, by name."""

    def __init__(self) -> None:
        self.gauges: dict[str, SilentSeries] = defaultdict(SilentSeries)

    def gauge(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find one."""
        return self.gauges[name]


class Process:
    """One worker."""

    def __init__(self, host: Host, seat: int) -> None:
        self.world = FakeWorld()
        self.world.now = host.now
        shares = host.shares.other(seat)
        self.told = Told()
        self.env = env = dataclasses.replace(
            self.world.env, peers=host.wire.peers(seat), shares=shares, metrics=self.told
        )
        self.desk = PlaceDesk(env)
        self.calls: list[Held] = []
        self.doors: dict[str, Door] = {}

    def door(self, name: str) -> Door:
        """The door of a backend, kept as a configuration keeps it."""
        return self.doors.setdefault(name, self.desk.door(name))


class Host:
    """Workers that share places; the queue lives on seat 0 unless told."""

    def __init__(self, workers: int = 2) -> None:
        self.now = 1000.0
        self.wire = FakeWire(workers)
        self.shares = FakeShares()
        self.processes = [Process(self, seat) for seat in range(workers)]

    def call(self, seat: int, limit: int = 2, name: str = "b", **facts: Any) -> Held:
        """One call comes to a worker."""
        process = self.processes[seat]
        held = Held(process, name, limit, **facts)
        process.calls.append(held)
        self.wire.pump()
        return held

    def end(self, held: Held) -> None:
        """One call is over."""
        held.process.calls.remove(held)
        held.end()
        self.wire.pump()

    def pass_time(self, seconds: float = 2 * TICK_S) -> None:
        """Ticks."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += TICK_S
            for process in self.processes:
                process.world.advance(self.now - process.world.now)
            self.wire.pump()

    def die(self, seat: int, home: int) -> None:
        """A worker is killed and another takes its seat."""
        self.shares.die(seat)
        self.wire.die(seat, home)
        self.processes[seat] = Process(self, seat)

    def running(self) -> int:
        """Calls that have a place."""
        return sum(held.running for process in self.processes for held in process.calls)

    def waiting(self) -> int:
        """Calls that have none yet."""
        return sum(
            not held.running and held.refused is None
            for process in self.processes
            for held in process.calls
        )

    def held(self) -> int:
        """Places that are not free."""
        return self.shares.of("backend:b").total()


def test_two_workers_share_the_places() -> None:
    """And those of a worker that waits are served when the other's calls end."""
    host = Host()
    calls = [host.call(n % 2, limit=2) for n in range(6)]
    assert [c.running for c in calls] == [True, True] + [False] * 4
    for done in range(5):
        host.end(calls[done])
        assert host.running() == min(2, 5 - done)
        assert calls[min(done + 2, 5)].running
    host.end(calls[5])
    host.pass_time()
    assert host.held() == 0


def test_a_lease_is_used_without_asking_and_goes_back_when_it_is_not() -> None:
    """Sixty-four places: the first call leases eight, which are free again after two ticks."""
    host = Host()
    call = host.call(0, limit=64)
    assert host.held() == 8
    host.end(call)
    assert host.held() == 8
    host.pass_time(3 * TICK_S)
    assert host.held() == 0


def test_idle_leases_go_to_who_waits() -> None:
    """Within two ticks, though their owner does nothing."""
    host = Host()
    leaser = host.call(0, limit=16)
    others = [host.call(1, limit=16) for _ in range(15)]
    assert leaser.running
    host.pass_time(2 * TICK_S)
    assert all(other.running for other in others)
    assert host.held() == 16


def test_nobody_passes_those_who_wait() -> None:
    """A new call queues up behind them, on any worker."""
    host = Host()
    first = host.call(0, limit=1)
    second = host.call(1, limit=1)
    third = host.call(0, limit=1)
    host.end(first)
    assert (second.running, third.running) == (True, False)


def test_the_queue_moves_when_its_worker_dies() -> None:
    """Who waits elsewhere asks the next one, in the old order; places of the dead are free."""
    host = Host(3)
    dead = [host.call(0, limit=2) for _ in range(2)]
    host.now += 1
    second = host.call(2, limit=2, arrived_at=900.0)
    first = host.call(1, limit=2, arrived_at=800.0)
    third = host.call(1, limit=2, arrived_at=950.0)
    assert all(call.running for call in dead)
    host.die(0, home=2)
    host.pass_time()
    assert (first.running, second.running, third.running) == (True, True, False)
    assert host.held() == 2


def test_an_empty_seat_keeps_no_queue() -> None:
    """Between a death and its replacement everybody keeps their own; places stay exact."""
    host = Host()
    running = host.call(1, limit=1)
    waits = host.call(1, limit=1)
    host.shares.die(0)
    host.wire.die(0, home=0)
    host.wire.lives[0] = (2, 0)
    host.pass_time()
    host.end(running)
    assert waits.running
    assert host.held() == 1


def test_a_turn_from_the_dead_is_no_place() -> None:
    """Its queue's worker held the place, and another took it since."""
    host = Host(3)
    running = host.call(0, limit=1)
    waits = host.call(1, limit=1)
    assert not host.wire.queue
    host.processes[0].calls.remove(running)
    running.end()  # the turn is on its way …
    ((*_, turn),) = host.wire.queue
    host.wire.queue.clear()
    host.die(0, home=2)
    other = host.call(2, limit=1)
    assert other.running
    host.processes[1].desk._take(0, turn)  # … and comes late
    assert not waits.running
    host.end(other)
    host.pass_time()
    assert waits.running


def test_whatever_a_full_ring_refuses_is_said_later() -> None:
    """Answers, refusals and farewells."""
    host = Host()
    first = host.call(0, limit=1)
    second = host.call(1, limit=1)
    third = host.call(1, limit=1)
    host.wire.full = True
    third.end()
    host.processes[1].calls.remove(third)
    host.wire.full = False
    host.end(first)
    host.pass_time()
    assert second.running
    host.end(second)
    host.pass_time()
    assert host.held() == 0


def test_a_limit_that_comes_counts_what_runs_already() -> None:
    """And one that goes lets everybody in."""
    host = Host()
    free = [host.call(0, limit=0) for _ in range(3)]
    assert host.held() == 0
    host.call(0, limit=4)
    assert host.held() == 4
    waits = host.call(0, limit=4)
    assert not waits.running
    host.call(0, limit=0)
    assert waits.running
    for call in free:
        host.end(call)
    assert host.processes[0].desk.door("b").used == 3


def test_a_limit_that_falls_takes_what_calls_leave() -> None:
    """Also when the places that are in hand are used again and again, and nobody waits."""
    host = Host()
    share = host.shares.of("backend:b")
    share.limit = 10
    calls = [host.call(n % 2, limit=AUTO) for n in range(8)]
    share.limit = 4
    for process in host.processes:
        process.desk.door("b").shrink()
    for ended in range(8):
        host.end(calls[ended])
        calls.append(host.call(ended % 2, limit=AUTO))
    assert (host.running(), host.held()) == (4, 4)
    share.limit = 6
    host.pass_time()
    assert (host.running(), host.waiting()) == (6, 2)


def test_the_limit_is_told_by_one_process_and_the_calls_by_each() -> None:
    """The one that keeps the queue; gauges are sums."""
    host = Host()
    for process in host.processes:
        process.door("b").meant(5, process.env, LimitBounds())
        process.desk.report()
    for n in range(6):
        host.call(n % 2, limit=5)
    host.pass_time(2 * EVERY_S)
    told = [process.told.gauges for process in host.processes]
    assert [gauges[LIMIT_GAUGE].value for gauges in told] == [5, 0]
    assert sum(gauges[HELD_GAUGE].value for gauges in told) == 5


def test_too_long_a_queue_is_told() -> None:
    """The wait it expects is what its door says next."""
    host = Host()
    host.call(0, limit=1)
    waits = host.call(1, limit=1, deadline=1000.3)
    host.pass_time(0.4)
    assert waits.refused == (0.0, False)


def test_places_are_exact_whatever_happens() -> None:
    """Calls, ends, departures, deaths, lost messages; then rest, and everything is free."""
    for seed in (int.from_bytes(os.urandom(3)) for _ in range(12)):
        storm(seed)


def storm(seed: int) -> None:
    """One such story."""
    random, host = Random(seed), Host(3)
    limit = random.choice([1, 3, 20])
    print(f"{seed=} {limit=}")
    for _ in range(400):
        calls = [held for process in host.processes for held in process.calls]
        act = random.random()
        if act < 0.45:
            host.call(random.randrange(3), limit=limit)
        elif act < 0.85 and calls:
            host.end(random.choice(calls))
        elif act < 0.87:
            host.die(random.randrange(3), home=random.randrange(3))
        elif act < 0.9:
            host.wire.lose = random.randrange(3)
        else:
            host.pass_time(TICK_S * random.randrange(1, 4))
        assert host.running() <= min(limit, host.held()), "more run than hold a place"
        assert host.held() <= limit + 2, "a place is held twice for as long as it changes hands"
    host.wire.lose = 0
    host.pass_time(2 * ASKED_AGAIN_S)
    assert host.running() == min(limit, host.running() + host.waiting()), "a place stands idle"
    while calls := [held for process in host.processes for held in process.calls]:
        host.end(random.choice(calls))
    host.pass_time(1.0)
    assert host.held() == 0, "a place leaked"
    assert host.shares.of("backend:b").wanted == 0


def test_a_desk_goes_with_its_process() -> None:
    """One that is a part of another program ends and leaves nothing; until then there is one."""
    world = FakeWorld()
    assert desk_of(world.env) is desk_of(world.env)
    desk = weakref.ref(desk_of(world.env))
    del world
    gc.collect()
    assert desk() is None
