"""Streams followed across shards: told in order, within a credit, through deaths and full rings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_shards import FakeHost, FakeShard
from tests.support.wait import until
from tpo_mp.errors import InvalidRequest, NotFound
from tpo_mp.pipeline.feed import UNNUMBERED, Feed, Listener
from tpo_mp.shm.callid import CallIds
from tpo_mp.worker.shared_feeds import CREDIT_BYTES


class FarEar(Listener):
    """Remembers what it was told, with the data's size."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, int, str]] = []
        self.data: list[bytes] = []

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        """Take one event."""
        self.heard.append((call_id, number, name))
        self.data.append(data)

    @property
    def numbers(self) -> list[int]:
        """The numbers of what it heard."""
        return [number for _, number, _ in self.heard]


class Source:
    """A call of one shard."""

    def __init__(self, shard: FakeShard, session: str | None = "s", tenant: str = "t") -> None:
        call = make_call(b"", tenant=tenant)
        call.id = CallIds(shard.seat, shard.epoch).new()
        self.deserted = 0
        self.feed = Feed(call, session, deserted=self._desert)
        shard.feeds.open(self.feed)
        self.feed.start(None)

    def _desert(self) -> None:
        self.deserted += 1

    def say(self, *texts: str) -> None:
        """Go on."""
        for text in texts:
            self.feed.token(text)


def follow(
    host: FakeHost, shard: FakeShard, call_id: str, ear: Listener, tenant: str = "t",
    after: int = UNNUMBERED, between: Callable[[], None] = lambda: None,
) -> bool:  # fmt: skip
    """Follow a call from a shard, pumping the rings meanwhile."""

    async def main() -> bool:
        asked = asyncio.ensure_future(shard.feeds.follow(call_id, ear, tenant, after))
        await asyncio.sleep(0)

        def answered() -> bool:
            if not asked.done():
                between()
                host.pump()
            return asked.done()

        await until(answered, what="the answer to the follower")
        return await asked

    return asyncio.run(main())


def test_other_shard_tells_everything_in_order(host: FakeHost) -> None:
    """What was, what comes, and the end; then both sides forget."""
    here, there = host.shards
    source, ear = Source(here), FarEar()
    source.say("a", "b")
    assert follow(host, there, source.feed.id, ear)
    source.say("c")
    source.feed.finish("done", b'{"text":"abc"}')
    host.pump()
    assert ear.numbers == [0, 1, 2, 3, 4]
    assert ear.heard[-1] == (source.feed.id, 4, "done")
    assert json.loads(ear.data[2])["text"] == "b"
    assert not ear.sources
    assert not here.feeds._far
    assert not there.feeds._subscriptions
    late = FarEar()
    assert follow(host, there, source.feed.id, late, after=2)
    host.pump()
    assert late.numbers == [3, 4]
    told = FarEar()
    assert follow(host, there, source.feed.id, told, after=4)
    assert told.numbers == []
    assert not told.sources


def test_unknown_foreign_and_future_are_told_apart(host: FakeHost) -> None:
    """As on the shard itself."""
    here, there = host.shards
    source = Source(here)
    with pytest.raises(NotFound):
        follow(host, there, source.feed.id, FarEar(), tenant="other")
    with pytest.raises(InvalidRequest):
        follow(host, there, source.feed.id, FarEar(), after=7)
    for call_id in (CallIds(0, here.epoch).new(), CallIds(0, 99).new(), CallIds(77, 1).new()):
        assert follow(host, there, call_id, FarEar()) is False
    assert not there.feeds._subscriptions
    assert not here.feeds._far


def test_event_longer_than_a_record_arrives_whole(host: FakeHost) -> None:
    """In pieces, among others."""
    here, there = host.shards
    source, ear = Source(here), FarEar()
    assert follow(host, there, source.feed.id, ear)
    long = "x" * (3 * here.links.max_record)
    source.say("a", long, "b")
    for _ in range(20):
        host.tick()
    assert ear.numbers == [0, 1, 2, 3]
    assert json.loads(ear.data[2])["text"] == long


def test_blocked_listener_costs_a_credit_and_nobody_waits(host: FakeHost) -> None:
    """The owner stops telling it, and goes on when there is room."""
    here, there = host.shards
    source, slow, fast = Source(here), FarEar(), FarEar()
    assert follow(host, there, source.feed.id, slow)
    assert follow(host, there, source.feed.id, fast)
    slow.blocked = True
    for _ in range(60):
        source.say("y" * 4000)
        host.tick()
    assert len(fast.heard) == 61
    taken = sum(map(len, slow.data))
    assert taken <= CREDIT_BYTES + 8000
    slow.unblock()
    for _ in range(20):
        host.tick()
    assert slow.numbers == list(range(61))


def test_follower_that_leaves_is_gone_there(host: FakeHost) -> None:
    """And the last one deserts the call."""
    here, there = host.shards
    source, ear = Source(here), FarEar()
    assert follow(host, there, source.feed.id, ear)
    ear.leave()
    host.pump()
    assert source.deserted == 1
    assert not here.feeds._far
    assert not there.feeds._subscriptions


def test_sessions_are_followed_on_every_shard(host: FakeHost) -> None:
    """Of one tenant; until it is left."""
    here, there = host.shards
    ear = FarEar()
    running = Source(here)
    there.feeds.follow_session("s", ear, "t")
    host.pump()
    near, other = Source(there), Source(here, tenant="other")
    far, elsewhere = Source(here), Source(here, session="z")
    for source in (running, near, other, far, elsewhere):
        source.feed.finish("done", b"{}")
    host.pump()
    assert {call_id for call_id, _, _ in ear.heard} == {
        source.feed.id for source in (running, near, far)
    }  # fmt: skip
    there.feeds.unfollow_session("s", ear, "t")
    host.pump()
    n = len(ear.heard)
    Source(here)
    Source(there)
    host.pump()
    assert len(ear.heard) == n
    assert not here.feeds._far
    assert not here.feeds.followers


def test_follower_waits_until_every_shard_knows_of_it(host: FakeHost) -> None:
    """So that what is asked next is heard; a shard that says nothing is waited for a moment."""
    _, there = host.shards

    async def story() -> None:
        for answering in (True, False):
            ear = FarEar()
            there.feeds.follow_session("s", ear, "t")
            heard = asyncio.ensure_future(there.feeds.heard(ear))
            await asyncio.sleep(0)
            assert not heard.done()
            if answering:
                host.pump()
            await asyncio.wait_for(heard, 30)

    asyncio.run(story())


def test_owner_that_dies_is_told_of(host: FakeHost) -> None:
    """A call's follower gets an error, a session's hears the successor."""
    here, there = host.shards
    source, ear, session = Source(here), FarEar(), FarEar()
    assert follow(host, there, source.feed.id, ear)
    there.feeds.follow_session("s", session, "t")
    host.pump()
    before = len(there.feeds._subscriptions)
    host.die(0)
    there.feeds.tick(0.0)
    assert ear.heard[-1] == (source.feed.id, UNNUMBERED, "error")
    assert json.loads(ear.data[-1])["code"] == "worker_lost"
    assert not ear.sources
    assert len(there.feeds._subscriptions) == before - 1
    (subscription,) = there.feeds._subscriptions.values()
    assert subscription.life == there.links.life_of(0)


def test_owner_that_dies_while_asked_does_not_know(host: FakeHost) -> None:
    """The question is over at once."""
    here, there = host.shards
    source = Source(here)

    def die() -> None:
        if there.links.life_of(0)[0] == here.epoch:
            host.die(0)
        there.feeds.tick(0.0)

    assert follow(host, there, source.feed.id, FarEar(), between=die) is False


def test_follower_that_dies_leaves(host: FakeHost) -> None:
    """Within a beat."""
    here, there = host.shards
    source, ear = Source(here), FarEar()
    assert follow(host, there, source.feed.id, ear)
    there.feeds.follow_session("s", FarEar(), "t")
    host.pump()
    host.die(1)
    here.feeds.tick(0.0)
    assert source.deserted == 1
    assert not here.feeds._far
    assert not here.feeds.followers


def test_damaged_ring_gives_up_its_streams(host: FakeHost) -> None:
    """Both ways: what was lost cannot be named; sessions are followed anew."""
    here, there = host.shards
    source, ear, session = Source(here), FarEar(), FarEar()
    assert follow(host, there, source.feed.id, ear)
    there.feeds.follow_session("s", session, "t")
    host.pump()
    there.feeds.damaged(0)
    assert ear.heard[-1][2] == "error"
    host.tick()
    host.tick()
    n = len(session.heard)
    source.say("again")
    host.pump()
    assert len(session.heard) > n
    assert len(here.feeds._far) == 1


def test_full_ring_delays_and_loses_nothing(host: FakeHost) -> None:
    """Events, credit and farewells go when there is room."""
    here, there = host.shards
    source, ear = Source(here), FarEar()
    assert follow(host, there, source.feed.id, ear)
    here.fill_ring(1)
    source.say("a", "b")
    assert here.feeds.busy
    host.pump(there)
    host.tick()
    source.feed.finish("done", b"{}")
    for _ in range(5):
        host.tick()
    assert ear.numbers == [0, 1, 2, 3]
    assert not here.feeds.busy
    other, second = Source(here), FarEar()
    assert follow(host, there, other.feed.id, second)
    there.fill_ring(0)
    second.leave()
    assert there.feeds.busy
    host.pump(here)
    for _ in range(5):
        host.tick()
    assert other.deserted == 1
    assert not there.feeds.busy


def test_one_long_event_keeps_to_the_credit_too(host: FakeHost) -> None:
    """Its pieces wait at the owner until the client has taken those before."""
    here, there = host.shards
    source, slow = Source(here), FarEar()
    assert follow(host, there, source.feed.id, slow)
    slow.blocked = True
    source.say("z" * (4 * CREDIT_BYTES))
    for _ in range(20):
        host.tick()
    (subscription,) = there.feeds._subscriptions.values()
    assert subscription._owed <= CREDIT_BYTES + here.links.max_record
    assert slow.numbers == [0]
    slow.unblock()
    for _ in range(60):
        host.tick()
    assert slow.numbers == [0, 1]
