"""A call is brought to where its key lives, and again when that shard dies."""

from __future__ import annotations

import pytest

from tests.support.fake_net import HeldStream
from tests.support.fake_shards import FakeHost
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.shm.plane import SeatState
from tpo_mp.types import Call, Reply


def body(n: int) -> bytes:
    """One that is certain to get the same answer."""
    return b'{"temperature":0,"messages":[],"n":%d}' % n


def asked(host: FakeHost, at: int, to: int, *, stream: bool = False) -> tuple[bytes, Delivery]:
    """A call of shard ``at`` whose key lives on ``to``, where a client has left it since."""
    first = host.shards[to].ask(body(1), stream=stream)
    delivery = host.shards[at].ask(body(1), stream=stream)
    host.pump()
    first.left()
    host.pump()
    return body(1), delivery


def test_a_key_lives_where_it_was_asked_first(host: FakeHost) -> None:
    """All others are brought there, and their answer says where that is; then it lives nowhere."""
    for lives, other in ((0, 1), (1, 0)):
        home, away = host.shards[lives], host.shards[other]
        first, second = home.ask(body(0)), away.ask(body(0))
        host.pump()
        assert (len(home.up.calls), len(away.up.calls)) == (1, 0)
        home.up.answer(Reply(200, b'{"said":1}'))
        host.pump()
        for delivery in (first, second):
            assert delivery.exchange.answer == b'{"said":1}'  # type: ignore[attr-defined]
            assert delivery.call.shard == lives
        assert (first.call.attempts, second.call.attempts) == (1, 0)
        assert second.call.cache == "coalesced" != first.call.cache
        assert not home.mesh.busy
        assert not away.mesh.busy
        home.up.calls.clear()


def test_a_full_ring_costs_only_the_sharing(host: FakeHost) -> None:
    """The call is served where it is."""
    same, _ = asked(host, 0, 1)
    here = host.shards[0]
    assert not here.up.calls
    here.fill_ring(1)
    second = here.ask(same)
    assert len(here.up.calls) == 1
    here.up.answer(Reply(200, b"{}"))
    assert second.exchange.status == 200  # type: ignore[attr-defined]


@pytest.mark.parametrize("half", [False, True])
def test_a_stream_goes_on_only_from_a_whole_event(host: FakeHost, half: bool) -> None:
    """Half an event that was sent cannot be completed by another answer."""
    first = b'data: {"id":"a","said":1}\n\n'
    _, delivery = asked(host, 0, 1, stream=True)
    held = HeldStream()
    host.shards[1].up.answer(Reply(200, None, stream=held, content_type=b"text/event-stream"))
    held.data(first + (b'data: {"id"' if half else b""))
    host.pump()
    host.die(1, back=False)
    here = host.shards[0]
    here.mesh.tick()
    host.pump(here)
    assert len(here.up.calls) == (0 if half else 1)
    if half:
        assert delivery.error is not None
        assert delivery.error.reason == "worker_lost"
        return
    again = HeldStream()
    here.up.answer(Reply(200, None, stream=again, content_type=b"text/event-stream"))
    again.data(first.replace(b'"a"', b'"b"'))
    again.data(b'data: {"id":"b","said":2}\n\n')
    again.end()
    said = delivery.exchange.answer  # type: ignore[attr-defined]
    assert said == first + b'data: {"id":"a","said":2}\n\n'
    assert delivery.error is None


def test_a_successor_that_serves_meanwhile_does_not_part_the_callers(host: FakeHost) -> None:
    """They are brought one after the other, and all to the same shard."""
    same, first = asked(host, 0, 1)
    here = host.shards[0]
    calls = [first, *(here.ask(same) for _ in range(3))]
    host.pump()
    host.die(1, back=False)
    lines, courier = host.plane.seat(1), here.peers.courier
    check = courier.check

    def then_it_is_back(call: Call) -> None:
        check(call)
        if here.up.calls:
            lines.state = SeatState.READY

    courier.check = then_it_is_back
    here.mesh.tick()
    assert lines.state == SeatState.READY
    here.up.answer(Reply(200, b'{"said":1}'))
    said = [call.exchange.answer for call in calls]  # type: ignore[attr-defined]
    assert said == [b'{"said":1}'] * 4
    assert [call.call.cache for call in calls].count("coalesced") == 3
    assert not here.mesh.busy
