"""The full lane: aiohttp for what the fast lane leaves alone.

Chunked and ``Expect`` bodies and upgrades come here with their unread bytes, one request per
connection, which then closes: aiohttp has no deadline for reading a head, so it is never left
waiting for one.

Invariants: the same handlers run through the same ``Exchange``; a refusal is sent before
``100 Continue``; the body obeys the same size and time limits, and a chunk count.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from tpo_mp.errors import Draining, InvalidRequest, TooLarge, TpoError
from tpo_mp.types import Stream

from .compress import INLINE_BYTES, Packer, worthwhile
from .edge import ClientEdge, reset
from .exchange import JSON, id_line
from .head import BadHead, Head, check
from .nameless import SILENT, NamelessProtocol, nameless
from .socket import Socket, check_upgrade
from .tally import CUT, LEFT

MALFORMED = "the body's framing is malformed"
MAX_CHUNKS = 10_000
HIGH_WATER_BYTES = 65536


class FullLane:
    """Takes over connections from the fast lane of one edge."""

    def __init__(self, edge: ClientEdge) -> None:
        self._edge = edge
        self._server = web.Server(
            self._handle,
            request_factory=nameless,
            handler_cancellation=True,
        )
        self._sockets: dict[Any, Socket] = {}
        edge.to_full_lane = self.take_over
        edge.drain_full_lane = self._drain
        edge.count_full_lane = lambda: len(self._server.connections)

    def take_over(self, transport: asyncio.Transport, unread: bytes) -> None:
        """Let aiohttp read this connection from ``unread`` on."""
        self._edge.count_full()
        protocol = NamelessProtocol(
            self._server,
            lambda status: self._bad(status, MALFORMED),
            access_log=None,
            logger=SILENT,
            keepalive_timeout=0.001,
            auto_decompress=False,
            lingering_time=1.0,
            read_bufsize=HIGH_WATER_BYTES,
        )
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(unread)

    def _drain(self) -> None:
        for connection in self._server.connections:
            # aiohttp would read nothing more, no pong either, from one it is told to close.
            if connection not in self._sockets:
                connection.close()
        for socket in list(self._sockets.values()):
            socket.callbacks.drain()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        edge = self._edge
        exchange = FullExchange(request, edge.slow_reader_s)
        try:
            # aiohttp splits and strips; our checks see the same names and values.
            exchange.head = check(
                request.method,
                request.raw_path.encode("latin-1", "replace") if request.raw_path else b"",
                [(bytes(n), bytes(v)) for n, v in request.raw_headers],
                request.version < (1, 1),
                edge.table,
                edge.max_body_bytes,
                edge.judges,
            )
        except BadHead as e:
            return self._bad(e.status, e.message)
        if edge.stamp is not None:
            exchange.head.add_lines(edge.stamp())
        began_at = monotonic()
        try:
            return await self._serve(request, exchange)
        finally:
            took_s = monotonic() - (exchange.read_at or began_at)
            edge.tally.add(exchange.head.tally, exchange.status, took_s)

    async def _serve(self, request: web.BaseRequest, exchange: FullExchange) -> web.StreamResponse:
        edge = self._edge
        try:
            if exchange.head.client is not None:
                exchange.peer = edge.peer(exchange.peer, exchange.head.client)
            if exchange.head.refusal is not None:
                raise exchange.head.refusal
            endpoint = exchange.head.endpoint
            assert endpoint is not None
            if endpoint.socket is not None and exchange.head.full_lane == "upgrade":
                return await self._upgrade(request, exchange)
            exchange.body = await self._body(request, exchange.head)
            exchange.read_at = monotonic()
            waiting = endpoint.handler(exchange)
            if waiting is not None:
                edge.adopt(exchange, cast("Any", waiting))
        except TpoError as e:
            edge.fail(exchange, e)
        except (asyncio.CancelledError, ConnectionError):
            exchange.left()
            raise
        except Exception as e:  # noqa: BLE001 - a defect answers 500, never a dead connection
            edge.crash(exchange, e)
        try:
            return await exchange.carry()
        except TimeoutError:  # the client stopped reading
            exchange.left()
            return exchange.cut()
        except (asyncio.CancelledError, ConnectionError):
            exchange.left()
            raise

    async def _upgrade(
        self, request: web.BaseRequest, exchange: FullExchange
    ) -> web.WebSocketResponse:
        head, edge = exchange.head, self._edge
        check_upgrade(head, edge.policy)
        if edge.closing:
            raise Draining("this gateway is shutting down", reason="draining", retry_after_s=1)
        assert head.endpoint is not None
        assert head.endpoint.socket is not None
        socket = Socket(head, exchange.peer, edge.slow_reader_s)
        head.endpoint.socket(socket)
        self._sockets[request.protocol] = socket
        lines = _headers(b"", head.extra + id_line(head))
        try:
            exchange.status = 101
            return await socket.carry(request, lines, edge.report)
        finally:
            del self._sockets[request.protocol]

    async def _body(self, request: web.BaseRequest, head: Head) -> bytes:
        endpoint = head.endpoint
        assert endpoint is not None
        limit = min(endpoint.max_body_bytes or self._edge.max_body_bytes, self._edge.max_body_bytes)
        if b"expect" in head.headers and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not request.body_exists:
            return b""  # its reader would answer empty chunks for ever
        parts: list[bytes] = []
        size = chunks = 0
        try:
            async with asyncio.timeout(self._edge.body_timeout_s):
                async for part, chunk_ended in request.content.iter_chunks():
                    size += len(part)
                    chunks += chunk_ended
                    if size > limit:
                        raise TooLarge(f"the body is over {limit} bytes")
                    if chunks > MAX_CHUNKS:
                        raise InvalidRequest(f"more than {MAX_CHUNKS} chunks", reason="bad_request")
                    parts.append(part)
        except TimeoutError:
            raise InvalidRequest(
                "the body took too long to arrive", reason="request_timeout", status=408
            ) from None
        except (HttpProcessingError, ClientPayloadError, ValueError) as e:
            raise InvalidRequest(MALFORMED, reason="bad_request") from e
        return b"".join(parts)

    def _bad(self, status: int, message: str) -> web.Response:
        self._edge.count_bad()
        whole = self._edge.bad_request(status, message)
        head, _, body = whole.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")[1:]
        return web.Response(status=status, body=body, headers=_headers(b"", b"\r\n".join(lines)))


class FullExchange:
    """One request on the full lane; writes are queued for ``carry``."""

    def __init__(self, request: web.BaseRequest, slow_reader_s: float) -> None:
        self._request = request
        self._slow_reader_s = slow_reader_s
        self.head = Head()
        self.body = b""
        self.peer = request.remote or ""
        self.on_disconnect: Callable[[], None] | None = None
        self.open = True
        self.read_at = 0.0
        self.status = LEFT
        self._ready = asyncio.Event()
        self._whole: tuple[int, bytes, bytes, bytes] | None = None
        self._stream: web.StreamResponse | None = None
        self._packer: Packer | None = None
        self._source: Stream | None = None
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._paused = False
        self._finished = False
        self._aborted = False
        self._hard = True

    # -- Exchange -----------------------------------------------------------------------------

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        self._whole = (status, body, content_type, extra)
        self.status = status
        self.on_disconnect = None
        self._ready.set()

    def begin(self, status: int, content_type: bytes, extra: bytes, source: Stream | None) -> None:
        coding = self.head.stream_coding
        if coding is not None and worthwhile(content_type, extra):
            extra += coding.line
            self._packer = coding.packer()
        self._stream = web.StreamResponse(
            status=status, headers=_headers(content_type, extra + self.head.extra)
        )
        self._source = source
        self.status = status
        self._ready.set()

    def write(self, data: bytes) -> None:
        if self._packer is not None:
            data = self._packer.part(data)
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > HIGH_WATER_BYTES and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause()
        self._ready.set()

    def finish(self) -> None:
        if self._packer is not None:
            end, self._packer = self._packer.end(), None
            self.write(end)
        self._finished = True
        self.on_disconnect = None
        self._ready.set()

    def abort(self, *, hard: bool = False) -> None:
        self._aborted = True
        if self.status == LEFT:
            self.status = CUT
        self._hard = hard
        self.on_disconnect = None
        self._ready.set()

    # -- the handler's side ---------------------------------------------------------------------

    def left(self) -> None:
        """The client went away."""
        self.open = False
        left, self.on_disconnect = self.on_disconnect, None
        if left is not None:
            left()

    async def carry(self) -> web.StreamResponse:
        """Send what is queued until the response is complete; raises ``TimeoutError``."""
        await self._ready.wait()
        if self._whole is not None:
            return await self._send(*self._whole)
        stream = self._stream
        if stream is None or self._aborted:
            return self.cut()
        stream.force_close()
        stream.enable_chunked_encoding()
        await stream.prepare(self._request)
        while True:
            while self._queue:
                data = self._queue.popleft()
                self._queued -= len(data)
                async with asyncio.timeout(self._slow_reader_s):
                    await stream.write(data)
                self._relax()
            if self._aborted:
                return self.cut()
            if self._finished and not self._queue:
                async with asyncio.timeout(self._slow_reader_s):
                    await stream.write_eof()
                return stream
            self._ready.clear()
            await self._ready.wait()

    async def _send(
        self, status: int, body: bytes, content_type: bytes, extra: bytes
    ) -> web.StreamResponse:
        head = self.head
        coding = head.coding
        if coding and len(body) >= head.pack_from and worthwhile(content_type, extra):
            squeeze, aside = coding.squeeze, len(body) > INLINE_BYTES
            squeezed = await asyncio.to_thread(squeeze, body) if aside else squeeze(body)
            if len(squeezed) < len(body):
                body, extra = squeezed, extra + coding.line
        lines = extra + self.head.whole
        headers = _headers(content_type, lines)
        if "connection" in headers:
            headers["connection"] += ", close"  # aiohttp says so itself only where nobody else does
        whole = web.Response(status=status, body=body, headers=headers)
        whole.force_close()
        async with asyncio.timeout(self._slow_reader_s):
            await whole.prepare(self._request)
            await whole.write_eof()
        return whole

    def _relax(self) -> None:
        if self._paused and self._queued < HIGH_WATER_BYTES // 2:
            self._paused = False
            if self._source is not None:
                self._source.resume()

    def cut(self) -> web.StreamResponse:
        """Break the connection so that the client sees the body is incomplete."""
        transport = self._request.transport
        if transport is not None and self._hard:
            reset(transport)
        elif transport is not None:
            transport.abort()
        return self._stream or web.Response(status=500)


def _headers(content_type: bytes, extra: bytes) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    if content_type:
        headers["content-type"] = content_type.decode("latin-1")
    for line in extra.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b": ")
            headers.add(name.decode("latin-1"), value.decode("latin-1"))
    return headers
