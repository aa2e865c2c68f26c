"""One engine for several workers: shared limits, deaths on either side, messages that get lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.fake_env import FakeWorld
from tests.support.fake_peers import FakeWire
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_host import (
    GIVEN_UP_S,
    EngineHost,
    EngineSetup,
    Submission,
    Ticket,
    host_of,
)
from tpo_mp.simulator.engine_room import EngineRoom
from tpo_mp.simulator.engine_steps import EngineShape, StepEngine
from tpo_mp.simulator.live import change
from tpo_mp.simulator.sleeping import fallen_asleep, woken
from tpo_mp.simulator.timer import timer_of

TOPIC = "engines:sim:1"


class Workers:
    """Some workers and one wire; the engine's home is worker 0 until a test moves it."""

    def __init__(self, count: int, **limits: int) -> None:
        costs = StepCosts(base_s=0.01)
        shape = {"max_seqs": 2, "max_waiting": 1, "blocks": 64, "max_model_tokens": 1024} | limits
        self.setups = {"tiny": EngineSetup(shape=EngineShape(costs=costs, **shape))}  # type: ignore[arg-type]
        self.wire = FakeWire(count)
        self.worlds = [FakeWorld() for _ in range(count)]
        self.hosts = [self.start(seat) for seat in range(count)]

    def start(self, seat: int) -> EngineHost:
        """A worker's process begins."""
        world = self.worlds[seat]

        def clock() -> float:
            # It moves by being read, as any does: who waits for an instant shall reach it.
            world.now += 1e-9
            return world.now

        env = replace(world.env, peers=self.wire.peers(seat), clock=clock)
        return host_of(env, TOPIC, self.setups, timer_of(env))

    def die(self, seat: int, home: int) -> None:
        """A worker's process dies and another begins; the engine's home moves."""
        self.wire.die(seat, home)
        moment = self.worlds[seat].now
        self.worlds[seat] = FakeWorld()
        self.worlds[seat].now = moment
        self.hosts[seat] = self.start(seat)

    def advance(self, seconds: float) -> None:
        """Let time pass, 5 ms at a time."""
        for _ in range(round(seconds / 0.005)):
            for world in self.worlds:
                world.advance(0.005)
            self.wire.pump()

    def rooms(self) -> list[EngineRoom]:
        """The engines there are."""
        return [room for host in self.hosts for room in host.rooms()]

    @property
    def engine(self) -> StepEngine:
        """The only engine."""
        (room,) = self.rooms()
        return room.engine


class Client:
    """A request of one worker's client, and what it hears."""

    def __init__(self, workers: Workers, seat: int, tokens: int, prompt: int = 4) -> None:
        self.host = workers.hosts[seat]
        self.tokens = 0
        self.over = False
        self.refused = 0
        world = workers.worlds[seat]
        wanted = Submission(0, "tiny", "m", prompt, tokens, 0, world.now)
        self.ticket: Ticket = self.host.enter(wanted, self.hear, self.refuse)
        workers.wire.pump()

    def hear(self, more: int, cached: int, over: bool) -> None:
        """Count tokens; of one that never ran nobody knows what was cached."""
        assert cached >= 0 or (over and not self.tokens + more)
        self.tokens += more
        self.over = over

    def refuse(self) -> None:
        """Count refusals."""
        self.refused += 1


def test_workers_share_one_engine_and_its_limits() -> None:
    """Two run, one waits, the next is refused, from whichever worker they come."""
    workers = Workers(2)
    clients = [Client(workers, seat, 5) for seat in (0, 1)]
    workers.advance(0.011)
    clients += [Client(workers, seat, 5) for seat in (1, 0, 1)]
    assert [client.refused for client in clients] == [0, 0, 0, 1, 1]
    engine = workers.engine
    assert (len(engine.running), len(engine.waiting)) == (2, 1)
    workers.advance(0.3)
    assert [client.tokens for client in clients] == [5, 5, 5, 0, 0]
    assert [client.over for client in clients[:3]] == [True] * 3
    assert workers.engine.counts.generation_tokens == 15


def test_client_who_leaves_frees_its_place() -> None:
    """Also one of another worker, and one whose farewell found the ring full."""
    workers = Workers(2)
    here, there = Client(workers, 0, 500), Client(workers, 1, 500)
    workers.advance(0.05)
    here.host.leave(here.ticket)
    workers.wire.full = True
    there.host.leave(there.ticket)
    workers.advance(0.02)
    assert workers.engine.running
    workers.wire.full = False
    workers.advance(0.1)
    assert workers.engine.running == []
    assert workers.engine.kv.free == 64


def test_requests_of_a_dead_worker_leave() -> None:
    """Within a tick; those of others go on."""
    workers = Workers(3)
    gone, stays = Client(workers, 1, 500), Client(workers, 2, 20)
    workers.advance(0.05)
    workers.die(1, home=0)
    workers.advance(0.06)
    assert len(workers.engine.running) == 1
    workers.advance(0.3)
    assert stays.over
    assert (stays.tokens, gone.over) == (20, False)


def test_requests_go_on_elsewhere_when_their_engine_dies() -> None:
    """Each token once; what was known of the prompt is computed anew."""
    workers = Workers(3)
    client = Client(workers, 1, 30)
    workers.advance(0.1)
    had = client.tokens
    assert 5 < had < 12
    workers.die(0, home=2)
    workers.advance(0.06)
    (moved,) = workers.engine.running
    assert moved.prompt_tokens + moved.answer_tokens == 4 + 30
    workers.advance(0.4)
    assert (client.tokens, client.over) == (30, True)


def test_lost_submission_is_sent_again() -> None:
    """Once only in the engine, whatever was lost."""
    workers = Workers(2)
    workers.wire.lose = 1
    client = Client(workers, 1, 3)
    workers.advance(0.05)
    assert workers.rooms() == []
    workers.wire.lose = 0
    workers.advance(0.4)
    assert client.over
    late = Client(workers, 1, 400)
    workers.advance(0.02)
    workers.wire.lose = 1 << 30
    workers.advance(0.3)
    workers.wire.lose = 0
    had = late.tokens
    workers.advance(0.1)
    assert late.tokens > had + 30  # what was lost is in the next count
    assert len(workers.engine.running) == 1


def test_home_that_never_answers_is_given_up() -> None:
    """Nobody waits for ever."""
    workers = Workers(2)
    workers.wire.lose = 1 << 30
    client = Client(workers, 1, 3)
    workers.advance(GIVEN_UP_S + 0.5)
    assert client.refused == 1


def test_what_is_aborted_is_over_with_what_it_has() -> None:
    """Whether it ran or waited, on the engine's worker and on another one; who comes then waits."""
    workers = Workers(2, max_waiting=9)
    clients = [Client(workers, seat, 50) for seat in (0, 1, 0, 1)]
    workers.advance(0.055)
    had = [client.tokens for client in clients]
    assert [tokens > 0 for tokens in had] == [True, True, False, False]
    env = workers.worlds[0].env
    asyncio.run(change(env.live, lambda state: fallen_asleep(state, 0, "abort")))
    workers.advance(1.2)
    assert [(client.over, client.refused) for client in clients] == [(True, 0)] * 4
    assert [client.ticket.got for client in clients] == [client.tokens for client in clients]
    assert [client.tokens < 50 for client in clients] == [True] * 4
    later = Client(workers, 1, 2)
    workers.advance(0.3)
    assert (later.tokens, later.over) == (0, False)
    asyncio.run(change(env.live, lambda state: woken(state, ())))
    workers.advance(1.2)
    assert (later.tokens, later.over) == (2, True)


def test_engine_outlives_a_reload_and_ends_with_its_last_user() -> None:
    """The same name finds the same engine; when nobody uses it, the next begins empty."""
    workers = Workers(1)
    again = workers.start(0)
    assert again is workers.hosts[0]
    client = Client(workers, 0, 5)
    again.close()
    again.close()
    workers.advance(0.2)
    assert client.over
    assert workers.start(0) is not again


def test_long_prompt_is_cut_to_what_a_message_holds() -> None:
    """Its first blocks are named, the rest is computed."""
    workers = Workers(2, blocks=4096, max_model_tokens=65_536, max_batched_tokens=65_536)
    names = b"".join(number.to_bytes(8, "big") for number in range(640))
    wanted = Submission(0, "tiny", "m", 10_300, 1, 0, 0.0, blocks=names)
    told: list[tuple[int, int, bool]] = []
    for _ in range(2):
        workers.hosts[1].enter(wanted, lambda *row: told.append(row), lambda: None)
        workers.advance(0.1)
    most = workers.wire.peers(1).most
    assert [over for _, _, over in told] == [True, True]
    assert told[0][1] == 0
    assert most // 8 * 16 * 0.8 < told[1][1] < most // 8 * 16


def test_unknown_engine_is_not_made() -> None:
    """A worker with another configuration speaks on another topic; what goes astray is dropped."""
    workers = Workers(2)
    wanted = Submission(0, "other", "m", 4, 4, 0, 0.0)
    with pytest.raises(KeyError):
        workers.hosts[0].enter(wanted, lambda *_: None, lambda: None)
    workers.hosts[1].enter(wanted, lambda *_: None, lambda: None)
    workers.advance(0.1)
    assert workers.rooms() == []
