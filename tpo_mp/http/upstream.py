"""The upstream client: kept-alive connections to one origin, no task per request.

``send`` writes an ``UpstreamExchange``'s request on an idle connection (or opens one) and tells it
what comes back.  A whole small reply is one callback.

Invariants: a connection carries one request at a time and returns to the pool only after a
complete, well-framed reply; a request is repeated by the pool only when a *reused* connection
closed before a single reply byte (the server had let it go); cancelling aborts the connection,
so the upstream sees the client leave; every wait has a deadline on the wheel.
"""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol, cast

from tpo_mp.errors import BackendFailure, BackendRefused, BackendTimeout, TpoError
from tpo_mp.ports import Timers, WaitingRoom

from .dechunk import ChunkError, Dechunker
from .response_head import ResponseHead, parse_response_head

NEVER = float("inf")
MAX_HEAD_BYTES = 65536
_MEMO_CAP = 256


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds allowed for each part of an exchange with an upstream."""

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 120.0
    total_s: float = 3600.0
    head_s: float = field(init=False, default=0.0)
    """Until the head of the answer is there."""

    def __post_init__(self) -> None:
        """What is asked for with each request."""
        object.__setattr__(self, "head_s", min(self.first_byte_s, self.total_s))


class Origin:
    """Pool of connections to one host and port."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        wheel: Timers,
        max_idle: int = 1024,
        max_connections: int = 0,
        room: WaitingRoom | None = None,
        dialled: Callable[[], object] | None = None,
    ) -> None:
        """``dialled`` is called for each connection that is tried."""
        self._dialled = dialled
        self.host, self.port, self.tls = host, port, tls
        self.deadlines = deadlines
        self.loop, self.wheel = loop, wheel
        self.max_idle = max_idle
        self.max_connections = max_connections
        self.room = room
        self.idle: list[UpstreamConnection] = []
        self.count = 0
        self.closed = False
        self.waiting: deque[UpstreamExchange] = deque()
        self.known: dict[bytes, ResponseHead] = {}
        """Heads seen before, by their bytes."""
        self._dials: set[asyncio.Task[None]] = set()

    def send(self, exchange: UpstreamExchange) -> None:
        """Send one request.

        Raises ``OverflowError`` when ``max_connections`` are busy and the waiting room is full.
        """
        idle = self.idle
        if idle:
            idle.pop().start(exchange)
        elif self.max_connections and self.count >= self.max_connections:
            if self.room is not None and not self.room.enter():
                raise OverflowError
            exchange.queued_at = self
            self.waiting.append(exchange)
        else:
            self.dial(exchange)

    def dial(self, exchange: UpstreamExchange) -> None:
        """Open a connection for ``exchange``."""
        self.count += 1
        if self._dialled is not None:
            self._dialled()
        task = self.loop.create_task(self._dial(exchange))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, exchange: UpstreamExchange) -> None:
        error: TpoError
        try:
            async with asyncio.timeout(self.deadlines.connect_s):
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(self),
                    self.host,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host if self.tls else None,
                )
        except TimeoutError:
            error = BackendTimeout(
                "upstream did not accept a connection in time", reason="connect_timeout"
            )
        except ssl.SSLError as e:
            why = getattr(e, "reason", None) or type(e).__name__
            error = BackendRefused(f"TLS to the upstream failed: {why}", reason="tls_failed")
        except (OSError, ValueError):  # a host name no resolver takes is a ValueError
            error = BackendRefused("upstream refused the connection", reason="connect_refused")
        else:
            if connection.lost:
                early = "upstream closed the connection early"
                exchange.fail(BackendFailure(early, reason="no_reply"))
            elif exchange.over:
                connection.offer()
            else:
                connection.start(exchange)
            return
        self.gone()
        exchange.fail(error)

    def gone(self) -> None:
        """A connection ended; a waiting call may open another."""
        self.count -= 1
        exchange = self.next_waiting()
        if exchange is not None:
            self.dial(exchange)

    def next_waiting(self) -> UpstreamExchange | None:
        """The call that waited longest and still wants its turn."""
        if not self.waiting:
            return None
        exchange = self.waiting.popleft()
        exchange.queued_at = None
        if self.room is not None:
            self.room.leave()
        return exchange

    def unqueue(self, exchange: UpstreamExchange) -> None:
        """A waiting call gave up."""
        exchange.queued_at = None
        self.waiting.remove(exchange)
        if self.room is not None:
            self.room.leave()

    def head(self, raw: bytes) -> ResponseHead:
        """Parse a head, or remember one seen before byte for byte."""
        known = self.known.get(raw)
        if known is None:
            known = parse_response_head(raw)
            if len(self.known) >= _MEMO_CAP:
                self.known.clear()
            self.known[raw] = known
        return known

    def close(self) -> None:
        """Drop idle connections; busy ones finish and then close."""
        self.closed = True
        for connection in self.idle:
            connection.transport.close()
        self.idle.clear()


class Carrier(Protocol):
    """What brings an exchange to the upstream and its answer back: a connection, or rings."""

    def drop(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class UpstreamExchange(ABC):
    """One request under way: the handle to pause, resume or cancel it, and who takes the answer.

    A subclass takes the response: ``whole`` alone, or ``started``, ``data``…, ``ended``; or
    ``failed`` at any point.  ``over`` is set once nothing more will be delivered.
    """

    __slots__ = ("connection", "over", "queued_at", "request", "retried")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.connection: Carrier | None = None
        self.over = False
        self.retried = False
        self.queued_at: Origin | None = None

    def cancel(self) -> None:
        """Stop; the upstream sees its client leave.  Nothing more is delivered."""
        if not self.over:
            self.over = True
            if self.connection is not None:
                self.connection.drop()
            elif self.queued_at is not None:
                self.queued_at.unqueue(self)

    def pause(self) -> None:
        """Read no more of the answer for now."""
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self.connection is not None:
            self.connection.resume()

    def fail(self, error: TpoError) -> None:
        """Deliver a failure, unless it is over."""
        if not self.over:
            self.over = True
            self.failed(error)

    @abstractmethod
    def whole(self, head: ResponseHead, body: bytes) -> None:
        """A complete answer arrived in one read."""

    @abstractmethod
    def started(self, head: ResponseHead) -> None:
        """The head arrived; its body follows."""

    @abstractmethod
    def data(self, chunk: bytes) -> None:
        """Body bytes."""

    @abstractmethod
    def ended(self) -> None:
        """The body is complete."""

    @abstractmethod
    def failed(self, error: TpoError) -> None:
        """Nothing more comes."""


_IDLE, _HEAD, _LENGTH, _CHUNKED, _TO_EOF = range(5)


def _unpacked(exchange: UpstreamExchange, coding: bytes) -> UpstreamExchange:
    from .unpack import Unpacked  # rare, and it imports this module

    return Unpacked(exchange, coding)


class UpstreamConnection(asyncio.Protocol):
    """One connection to an origin."""

    __slots__ = (
        "_buffer", "_dechunker", "_head", "_left", "_paused", "_state", "_total_at", "deadline",
        "exchange", "filed_at", "lost", "origin", "reused", "transport",
    )  # fmt: skip

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.exchange: UpstreamExchange | None = None
        self.deadline = NEVER
        self.filed_at = 0.0
        self.lost = False
        self.reused = False
        self._state = _IDLE
        self._buffer = b""
        self._left = 0
        self._paused = False
        self._total_at = NEVER
        self._head: ResponseHead | None = None
        self._dechunker: Dechunker | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def start(self, exchange: UpstreamExchange) -> None:
        """Send one request."""
        exchange.connection = self
        self.exchange = exchange
        self._state = _HEAD
        now = monotonic()
        deadlines = self.origin.deadlines
        self._total_at = now + deadlines.total_s
        self.deadline = now + deadlines.head_s
        if self.filed_at <= now:
            self.origin.wheel.add(self, now)
        self.transport.write(exchange.request)

    def offer(self) -> None:
        """Become idle: serve a waiting call, or wait in the pool."""
        origin = self.origin
        self.exchange = None
        self._state = _IDLE
        self.deadline = NEVER
        exchange = origin.next_waiting()
        if exchange is not None:
            self.start(exchange)
        elif origin.closed or len(origin.idle) >= origin.max_idle:
            self.transport.close()
        else:
            origin.idle.append(self)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _HEAD:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            elif self._take_whole(data):
                return
            self._take_head(data)
        elif state == _IDLE:
            # Nobody asked: a stray reply must never meet the next caller.
            self._discard()
        else:
            self.deadline = min(monotonic() + self.origin.deadlines.idle_s, self._total_at)
            self._take_body(data)

    def _take_whole(self, data: bytes) -> bool:
        """Take nearly every answer that is not streamed: a head seen before, and all its body.

        What happens is what ``_take_head``, ``_finish`` and ``offer`` do, in one go.
        """
        origin, exchange = self.origin, self.exchange
        at = data.find(b"\r\n\r\n") + 4
        head = origin.known.get(data[:at])
        if head is None or not head.simple or len(data) - at != head.content_length:
            return False
        assert exchange is not None
        exchange.connection = None
        exchange.over = True
        self.reused = True
        idle = origin.idle
        if origin.waiting or origin.closed or len(idle) >= origin.max_idle:
            self.offer()
        else:
            self.exchange = None
            self._state = _IDLE
            self.deadline = NEVER
            idle.append(self)
        exchange.whole(head, data[at:])
        return True

    def _take_head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                self._break(
                    BackendFailure("upstream sent an endless head", reason="bad_upstream_head")
                )
            else:
                self._buffer = data
            return
        try:
            head = self.origin.head(data[: end + 4])
        except BackendFailure as e:
            self._break(e)
            return
        if head.status < 200:
            self.reused = False  # it has the request: it must not be sent again
            rest = data[end + 4 :]
            if head.status == 101:
                self._break(
                    BackendFailure("upstream switched protocols", reason="bad_upstream_head")
                )
            elif rest:
                self._take_head(rest)
            return
        exchange = self.exchange
        assert exchange is not None
        if head.coding:
            try:
                exchange = self.exchange = _unpacked(exchange, head.coding)
            except BackendFailure as e:
                self._break(e)
                return
        length = head.content_length
        if length >= 0 and not head.chunked and len(data) - end - 4 == length:
            self._finish(head)
            exchange.whole(head, data[end + 4 :])
            return
        self._head = head
        now = monotonic()
        self.deadline = min(now + self.origin.deadlines.idle_s, self._total_at)
        self.origin.wheel.add(self, now)
        if head.chunked:
            self._state = _CHUNKED
            self._dechunker = Dechunker()
        elif length >= 0:
            self._state = _LENGTH
            self._left = length
        else:
            self._state = _TO_EOF
        exchange.started(head)
        rest = data[end + 4 :]
        if rest and self.exchange is exchange and not exchange.over:
            self._take_body(rest)

    def _take_body(self, data: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        if self._state == _CHUNKED:
            dechunker = self._dechunker
            assert dechunker is not None
            try:
                parts = dechunker.feed(data)
            except ChunkError as e:
                self._break(
                    BackendFailure(f"upstream broke its framing: {e}", reason="bad_framing")
                )
                return
            if parts:
                exchange.data(parts[0] if len(parts) == 1 else b"".join(parts))
            if dechunker.done and not exchange.over:
                self._end(dechunker.rest)
        elif self._state == _LENGTH:
            left = self._left
            if len(data) > left:
                data, rest = data[:left], data[left:]
            else:
                rest = b""
            self._left = left - len(data)
            if data:
                exchange.data(data)
            if self._left == 0 and not exchange.over:
                self._end(rest)
        else:
            exchange.data(data)

    def _end(self, rest: bytes) -> None:
        exchange, head = self.exchange, self._head
        assert exchange is not None
        assert head is not None
        self._finish(head, clean=not rest)
        exchange.ended()

    def _finish(self, head: ResponseHead, *, clean: bool = True) -> None:
        """The reply is complete: pool the connection before anyone hears of it."""
        exchange = self.exchange
        assert exchange is not None
        exchange.connection = None
        exchange.over = True
        self._dechunker = None
        self._head = None
        if self._paused:
            self.resume()
        self.reused = True
        if head.keep_alive and clean:
            self.offer()
        else:
            self.exchange = None
            self._state = _IDLE
            self.deadline = NEVER
            self.transport.close()

    def _break(self, error: TpoError) -> None:
        exchange = self.exchange
        self.drop()
        if exchange is not None:
            exchange.connection = None
            exchange.fail(error)

    def _discard(self) -> None:
        if self in self.origin.idle:
            self.origin.idle.remove(self)
        self.transport.abort()

    def drop(self) -> None:
        """Abort the connection."""
        self.exchange = None
        self.deadline = NEVER
        self.transport.abort()

    def pause(self) -> None:
        if not self._paused and self._state >= _LENGTH and not self.transport.is_closing():
            self._paused = True
            # Its silence is now ours: only the total deadline still runs.
            self.deadline = self._total_at
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()
            now = monotonic()
            self.deadline = min(now + self.origin.deadlines.idle_s, self._total_at)
            self.origin.wheel.add(self, now)

    def expire(self) -> None:
        if self._state == _HEAD:
            error = BackendTimeout("upstream did not answer in time", reason="first_byte_timeout")
        elif monotonic() >= self._total_at:
            error = BackendTimeout("upstream took too long in all", reason="total_timeout")
        else:
            error = BackendTimeout("upstream fell silent mid-reply", reason="idle_timeout")
        self._break(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        origin, exchange = self.origin, self.exchange
        self.lost = True
        self.exchange = None
        self.deadline = NEVER
        if self._state == _IDLE and self in origin.idle:
            origin.idle.remove(self)
        if exchange is None or exchange.over:
            origin.gone()
            return
        exchange.connection = None
        if self._state == _HEAD and self.reused and not self._buffer and not exchange.retried:
            exchange.retried = True
            origin.count -= 1
            origin.dial(exchange)
            return
        origin.gone()
        if self._state == _TO_EOF and exc is None:
            exchange.over = True
            exchange.ended()
            return
        reason = "no_reply" if self._state == _HEAD else "cut_off"
        exchange.fail(BackendFailure("upstream closed the connection early", reason=reason))
