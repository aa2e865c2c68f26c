"""Following a response: pages as they come, pauses, and an honest end."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fake_gateway import FakeExchange, FakeGateway
from tpo_mp.errors import InvalidRequest
from tpo_mp.http.head import Head
from tpo_mp.pipeline.following import FollowedStream, follow
from tpo_mp.pipeline.response_log import EventPage


def run(*pages: EventPage | None, after: int = -1) -> tuple[FakeExchange, FakeGateway]:
    """Follow through these pages."""
    exchange, gateway = FakeExchange(Head()), FakeGateway(pages=list(pages))
    asyncio.run(follow(exchange, gateway, "call-1", after))
    assert exchange.ended
    return exchange, gateway


def test_each_page_is_asked_for_after_the_last() -> None:
    """Pings fill silence; the end is a proper end of body."""
    exchange, gateway = run(
        EventPage(b"a", 3), EventPage(b"", 3), EventPage(b"b", 5), EventPage(b"c", 6, ended=True),
        after=2,
    )  # fmt: skip
    assert exchange.answer == b"a: ping\n\nbc"
    assert gateway.followed == [("call-1", 2), ("call-1", 3), ("call-1", 3), ("call-1", 5)]
    assert b"cache-control: no-cache" in exchange.extra


@pytest.mark.parametrize("page", [None, EventPage(b"", -1, gone=True)])
def test_events_that_are_gone_are_refused(page: EventPage | None) -> None:
    """Before anything was sent: a 400 that names the parameter."""
    with pytest.raises(InvalidRequest) as caught:
        run(page)
    assert caught.value.param == "stream"


@pytest.mark.parametrize("page", [None, EventPage(b"", 1, gone=True), EventPage(b"x", 2, run=1)])
def test_rest_that_is_lost_is_an_error_event(page: EventPage | None) -> None:
    """The shard died, the log was emptied, or the call began anew."""
    exchange, _ = run(EventPage(b"a", 1), page)
    assert exchange.answer.startswith(b"aevent: error\n")
    assert b"stream_lost" in exchange.answer


def test_reader_that_is_slow_is_waited_for() -> None:
    """Nothing is asked for while its connection is full."""

    async def story() -> None:
        source = FollowedStream()
        source.attach(None)  # type: ignore[arg-type]
        await source.ready()
        source.pause()
        waiting = asyncio.create_task(source.ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        source.resume()
        await waiting
        source.pause()
        source.cancel()
        await source.ready()

    asyncio.run(story())
