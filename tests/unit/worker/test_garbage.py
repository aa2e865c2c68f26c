"""Calls leave no reference cycles, whatever becomes of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from tests.support.fake_net import HeldStream
from tests.support.fake_shards import FakeHost, FakeShard
from tpo_mp.errors import BackendFailure, Cancelled
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.types import Reply

CALLS = 20
Fate = Callable[[Delivery, FakeShard], None]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is collected but by the test, and nothing of before, which nobody looks at again."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.enable()


def answered(_delivery: Delivery, server: FakeShard) -> None:
    """A whole reply."""
    server.up.answer(Reply(200, b"{}"))


def refused(_delivery: Delivery, server: FakeShard) -> None:
    """An error of the upstream, with a cause of its own."""
    try:
        try:
            raise OSError("connection refused")
        except OSError as cause:
            raise BackendFailure("no upstream") from cause
    except BackendFailure as error:
        server.up.answer(error)


def broken(_delivery: Delivery, server: FakeShard) -> None:
    """A defect of a feature."""
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError as error:
        server.up.answer(error)


def left(delivery: Delivery, _server: FakeShard) -> None:
    """The client leaves before there is an answer."""
    delivery.stop(Cancelled("the client left"))


def _begin(server: FakeShard) -> HeldStream:
    held = HeldStream()
    server.up.answer(Reply(200, None, stream=held, content_type=b"text/event-stream"))
    server.host.pump()
    held.data(b"data: 1\n\n")
    server.host.pump()
    return held


def _end(held: HeldStream, error: BackendFailure | None = None) -> None:
    held.end(error)
    held.sink = None


def streamed(_delivery: Delivery, server: FakeShard) -> None:
    """A stream to its end."""
    _end(_begin(server))


def cut(_delivery: Delivery, server: FakeShard) -> None:
    """A stream that breaks off."""
    _end(_begin(server), BackendFailure("cut"))


def left_in_mid_stream(delivery: Delivery, server: FakeShard) -> None:
    """The client leaves in the middle."""
    _begin(server)
    delivery.stop(Cancelled("the client left"))


@pytest.mark.parametrize("fate", [answered, refused, broken, left])
@pytest.mark.parametrize("home", [0, 1], ids=["local", "forwarded"])
@pytest.mark.usefixtures("no_collector")
def test_call_leaves_nothing_for_the_collector(host: FakeHost, home: int, fate: Fate) -> None:
    """Answered, failed or given up."""
    check(host, home, fate, stream=False)


@pytest.mark.parametrize("fate", [streamed, cut, left_in_mid_stream])
@pytest.mark.parametrize("home", [0, 1], ids=["local", "forwarded"])
@pytest.mark.usefixtures("no_collector")
def test_stream_leaves_nothing_for_the_collector(host: FakeHost, home: int, fate: Fate) -> None:
    """Ended, cut or left."""
    check(host, home, fate, stream=True)


def check(host: FakeHost, home: int, fate: Fate, *, stream: bool) -> None:
    """Make calls of that fate; the second round must leave nothing."""
    session = host.session_on(home)
    for _ in range(2):
        gc.collect()
        for _ in range(CALLS):
            live(host, home, session, fate, stream=stream)
        for shard in host.shards:
            shard.account.tick()
            shard.crashes.clear()
        host.pump()
    assert gc.collect() == 0


def live(host: FakeHost, home: int, session: str, fate: Fate, *, stream: bool) -> None:
    """One call from its start to its end, and its client's connection goes on to the next."""
    delivery = host.shards[0].ask(session=session, stream=stream)
    host.pump()
    server = host.shards[home]
    fate(delivery, server)
    host.pump()
    assert delivery.settled
    exchange = delivery.exchange
    exchange.on_disconnect = None
    exchange.source = None  # type: ignore[attr-defined]
    server.up.calls.clear()
    server.up.promises.clear()
