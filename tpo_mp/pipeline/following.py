"""Streams a background response to whoever follows it, from any event on, on any shard.

Invariants: a reader who cannot keep up only waits; a stream whose rest cannot be had ends with the
dialect's error event; leaving ends the following and nothing else.
"""

from __future__ import annotations

import asyncio

from tpo_mp.dialects import openai_responses
from tpo_mp.errors import Fault, InvalidRequest
from tpo_mp.http.exchange import SSE, Exchange, id_line
from tpo_mp.types import Sink

from .delivery import SSE_LINES
from .gateway import Gateway

HEARTBEAT_S = 15.0
_PING = b": ping\n\n"


class FollowedStream:
    """The source of a followed stream, as the client's connection sees it: it can be paused."""

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        self._flows = asyncio.Event()
        self._flows.set()

    def attach(self, sink: Sink) -> None:
        """Nothing is pushed: whoever follows pulls."""

    def pause(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def cancel(self) -> None:
        self._flows.set()

    async def ready(self) -> None:
        """Wait until the client takes more."""
        await self._flows.wait()


async def follow(exchange: Exchange, gateway: Gateway, call_id: str, after: int) -> None:
    """Send every event after number ``after``; raises ``InvalidRequest`` when they are gone."""
    page = await gateway.background_events(call_id, after, 0.0)
    if page is None or page.gone:
        said = "the events of this response are no longer kept; get it without stream"
        raise InvalidRequest(said, reason="stream_not_kept", param="stream")
    run, source = page.run, FollowedStream()
    exchange.begin(200, SSE, id_line(exchange.head) + SSE_LINES, source)
    while True:
        if page.data:
            exchange.write(page.data)
        if page.ended:
            break
        after = page.last
        await source.ready()
        page = await gateway.background_events(call_id, after, HEARTBEAT_S)
        if page is None or page.gone or page.run != run:
            lost = Fault("the rest of the stream is lost", reason="stream_lost")
            exchange.write(openai_responses.error_event(lost))
            break
        if not page.data and not page.ended:
            exchange.write(_PING)
    exchange.finish()
