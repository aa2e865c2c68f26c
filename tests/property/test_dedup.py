"""Joins, leaves, pieces and deaths over three shards, in any order, against the rules.

The shards are real but for their loops and upstreams: shared memory, rings, owners, chains.

- Those who ask the same and wait have one upstream call; without them there is none.
- Nobody who lives hangs, gets a byte twice, or a piece of another answer.
- A death is noticed only by those who had a part of an answer that does not come again.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.effort import LONG
from tests.support.fake_net import HeldStream
from tests.support.fake_shards import FakeHost, FakeShard
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.types import Reply

EXAMPLES = 5_000 if LONG else 40
PIECES = 4
DONE = b"data: [DONE]\n\n"
BEGUN = (("ask", 0, 1), ("ask", 1, 1), ("ask", 2, 1), ("answer", 0, 0))
"""What every mix begins with: a stream that all three shards wait for."""
FORMS = st.sampled_from((1, 1, 1, 1, 0, 2, 3))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2), FORMS),
        st.tuples(st.sampled_from(["leave", "answer"]), st.integers(0, 30), st.just(0)),
        st.tuples(st.sampled_from(["piece", "piece", "answer"]), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("piece"), st.just(0), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 2), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)  # fmt: skip


def piece(answer: int, at: int, fickle: bool) -> bytes:
    """A piece of the ``answer``-th stream; a fickle one is another answer after its first."""
    said = f"{answer}." if fickle and at else ""
    return b'data: {"id":"up-%d","said":"%b%d"}\n\n' % (answer, said.encode(), at)


class Upcall:
    """One upstream call."""

    def __init__(self, shard: FakeShard, at: int, number: int) -> None:
        self.shard = shard
        self.at = at
        self.number = number
        self.form = (shard.up.calls[at].body, shard.up.calls[at].stream)
        self.held: HeldStream | None = None
        self.sent = 0
        self.over = False

    @property
    def live(self) -> bool:
        """Whether the upstream works on it."""
        if self.over:
            return False
        if self.held is not None:
            return "cancel" not in self.held.told
        return not self.shard.up.promises[self.at].done


class Client:
    """One client and what it saw of deaths."""

    def __init__(self, shard: FakeShard, delivery: Delivery) -> None:
        self.shard = shard
        self.delivery = delivery
        self.exchange: Any = delivery.exchange
        self.form = (delivery.call.body, delivery.call.stream)
        self.had: list[int] = []
        """Pieces it had at each death."""

    @property
    def pieces(self) -> list[bytes]:
        """What it has of a stream."""
        found: list[bytes] = self.exchange.answer.split(b"\n\n")
        return [one for one in found if one.startswith(b"data: {")]

    @property
    def waits(self) -> bool:
        """Whether it was not told everything."""
        return not self.delivery.settled


class World:
    """Three shards, their clients and upstream calls."""

    def __init__(self, fickle: bool) -> None:
        self.fickle = fickle
        self.host = FakeHost(3)
        self.alive = list(self.host.shards)
        self.clients: list[Client] = []
        self.upcalls: list[Upcall] = []
        self.seen = {shard.seat: 0 for shard in self.alive}

    def rest(self) -> None:
        """Let everything arrive."""
        for _ in range(2):
            self.host.pump(*self.alive)
            for shard in self.alive:
                shard.mesh.tick()
        self.host.pump(*self.alive)
        for shard in self.alive:
            for at in range(self.seen[shard.seat], len(shard.up.calls)):
                self.upcalls.append(Upcall(shard, at, len(self.upcalls)))
            self.seen[shard.seat] = len(shard.up.calls)

    @property
    def live(self) -> list[Upcall]:
        """Upstream calls of living shards."""
        return [up for up in self.upcalls if up.shard in self.alive and up.live]

    def ask(self, at: int, form: int) -> None:
        """A client asks: one of two bodies, whole or as a stream."""
        if self.host.shards[at] not in self.alive:
            return
        body = b'{"temperature":0,"messages":[],"n":%d}' % (form // 2)
        shard = self.host.shards[at]
        self.clients.append(Client(shard, shard.ask(body, stream=form % 2 == 1)))

    def leave(self, at: int, _: int) -> None:
        """A client hangs up."""
        waiting = [client for client in self.clients if client.waits]
        if waiting:
            waiting[at % len(waiting)].exchange.on_disconnect()

    def answer(self, at: int, _: int) -> None:
        """An upstream begins to answer."""
        silent = [up for up in self.live if up.held is None]
        if silent:
            self._begin(silent[at % len(silent)])

    def _begin(self, up: Upcall) -> None:
        if up.form[1]:
            up.held = HeldStream()
            up.shard.up.answer(
                Reply(200, None, stream=up.held, content_type=b"text/event-stream"), up.at
            )
        else:
            up.over = True
            up.shard.up.answer(Reply(200, b"whole of " + up.form[0]), up.at)

    def piece(self, at: int, _: int) -> None:
        """An upstream says the next piece, or ends."""
        speaking = [up for up in self.live if up.held is not None]
        if speaking:
            self._speak(speaking[at % len(speaking)])

    def _speak(self, up: Upcall) -> None:
        held = up.held
        assert held is not None
        if up.sent < PIECES:
            held.data(piece(up.number, up.sent, self.fickle))
        else:
            held.data(DONE)
            up.over = True
            held.end()
        up.sent += 1

    def kill(self, at: int, _: int) -> None:
        """A shard dies, with its clients; nobody follows it for now."""
        shard = self.host.shards[at]
        if shard not in self.alive or len(self.alive) == 1:
            return
        self.alive.remove(shard)
        self.clients = [client for client in self.clients if client.shard is not shard]
        for client in self.clients:
            if client.waits:
                client.had.append(len(client.pieces))
        self.host.die(at, back=False)

    def check(self) -> None:
        """What holds whenever everything has arrived."""
        waiting = [client.form for client in self.clients if client.waits]
        live = [up.form for up in self.live]
        assert sorted(live) == sorted(set(waiting)), (live, waiting)
        for client in self.clients:
            if client.delivery.settled and client.exchange.status:
                self._judge(client)

    def _judge(self, client: Client) -> None:
        """One that was told everything, or left."""
        error = client.delivery.error
        if error is not None and error.code == "cancelled":
            return
        if error is not None:
            # A body that was open at two deaths is refused; else only a fickle answer breaks off.
            torn = self.fickle and max(client.had, default=0) >= 2
            assert len(self.alive) == 1 or torn, error
            return
        if not client.form[1]:
            assert client.exchange.answer == b"whole of " + client.form[0]
            return
        pieces = client.pieces
        assert len(pieces) == PIECES
        assert client.exchange.answer.endswith(DONE)
        assert len({one.split(b",")[0] for one in pieces}) == 1, "more than one id"
        said = [one.split(b'"said":"')[1].rstrip(b'"}') for one in pieces]
        assert [one.rpartition(b".")[2] for one in said] == [b"0", b"1", b"2", b"3"]
        assert len({one.rpartition(b".")[0] for one in said[1:]}) == 1, "of two answers"

    def close(self) -> None:
        """Nothing of the calls is left."""
        for shard in self.alive:
            assert shard.crashes == []
            assert not shard.mesh.busy
        self.host.close()


@pytest.mark.timeout(1800 if EXAMPLES > 1000 else 60)
@settings(max_examples=EXAMPLES, deadline=None)
@given(STEPS, st.booleans())
def test_joins_leaves_and_deaths_in_any_order(steps: list[Any], fickle: bool) -> None:
    """At the end everything is answered, and everybody ended as ruled."""
    world = World(fickle)
    try:
        for name, *where in (*BEGUN, *steps):
            getattr(world, name)(*where)
            world.rest()
            world.check()
        for _ in range(8 * PIECES):
            for up in world.live:
                world._speak(up) if up.held is not None else world._begin(up)
            world.rest()
        world.check()
        assert not [client for client in world.clients if client.waits], "somebody hangs"
    except BaseException:
        world.host.close()
        raise
    world.close()
