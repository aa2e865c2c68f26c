"""One WebSocket connection (RFC 6455) of the full lane: whole messages in, whole messages out.

Messages arrive by callback in the turn they were read; what is sent is queued for one task, so a
client that reads slowly never holds up whoever sends.

Invariants: refusals come before the upgrade, as plain HTTP; a page of another origin is let in only
where CORS would let it read; a message is at most 1 MiB and text; a peer that neither speaks nor
pongs is cut off after one and a half heartbeats, one that does not read after ``slow_reader_s``;
``left`` is called exactly once.
Known weakness: aiohttp accepts unmasked frames, and the reserved close code 1006, from a client.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from tpo_mp.errors import InvalidRequest, PolicyViolation

from .edge import reset

# What compiles a configuration reads the options of every surface: it must not pay for aiohttp.
if TYPE_CHECKING:
    from aiohttp import web
    from multidict import CIMultiDict

    from .head import Head
    from .policy import Policy

MAX_MESSAGE_BYTES = 1 << 20
HIGH_WATER_BYTES = 65536
HEARTBEAT_S = 15.0
CLOSE_WAIT_S = 2.0
GOING_AWAY, UNSUPPORTED, DEFECT = 1001, 1003, 1011

# It would log a warning, with the client's own words, for every subprotocol that nobody speaks.
logging.getLogger("aiohttp.websocket").disabled = True


class Callbacks(Protocol):
    """Who talks on a socket."""

    def message(self, text: str) -> None:
        """A whole message arrived."""

    def left(self) -> None:
        """The connection is over; nothing more is sent."""

    def block(self) -> None:
        """The client reads slower than it is sent to."""

    def unblock(self) -> None:
        """There is room again."""

    def drain(self) -> None:
        """The process wants to leave: close once what runs has ended."""


class Socket:
    """One connection; ``open`` gives it its ``callbacks`` before the upgrade."""

    def __init__(self, head: Head, peer: str, slow_reader_s: float) -> None:
        self.head = head
        self.peer = peer
        self.heartbeat_s = HEARTBEAT_S
        self.callbacks: Callbacks
        self._slow_reader_s = slow_reader_s
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._blocked = False
        self._ready = asyncio.Event()
        self._close: tuple[int, bytes] | None = None

    def send(self, text: bytes) -> None:
        """Queue a text message; after ``close`` it is dropped."""
        if self._close is not None:
            return
        self._queue.append(text)
        self._queued += len(text)
        if self._queued > HIGH_WATER_BYTES and not self._blocked:
            self._blocked = True
            self.callbacks.block()
        self._ready.set()

    def close(self, code: int, why: str = "") -> None:
        """Close once everything queued is sent."""
        if self._close is None:
            self._close = (code, why.encode()[:120])
            self._ready.set()

    @property
    def closing(self) -> bool:
        """Whether ``close`` was called."""
        return self._close is not None

    async def carry(
        self, request: web.BaseRequest, lines: CIMultiDict[str], crash: Callable[[Exception], None]
    ) -> web.WebSocketResponse:
        """Upgrade ``request`` and talk until the connection ends; ``lines`` go into the answer."""
        from aiohttp import web

        answer = web.WebSocketResponse(
            heartbeat=self.heartbeat_s,
            # aiohttp refuses a message that is as long as its limit.
            max_msg_size=MAX_MESSAGE_BYTES + 1,
            compress=False,
            timeout=CLOSE_WAIT_S,
            writer_limit=HIGH_WATER_BYTES,
        )
        answer.headers.update(lines)
        writing: asyncio.Task[None] | None = None
        try:
            await answer.prepare(request)
            writing = asyncio.create_task(self._write(answer, request))
            await self._read(answer, crash)
        finally:
            self._close = self._close or (0, b"")
            if writing is not None:
                writing.cancel()
            self.callbacks.left()
        return answer

    async def _read(
        self, answer: web.WebSocketResponse, crash: Callable[[Exception], None]
    ) -> None:
        from aiohttp import WSMsgType

        while True:
            message = await answer.receive()
            if message.type is WSMsgType.TEXT:
                try:
                    self.callbacks.message(message.data)
                except Exception as e:  # noqa: BLE001 - a defect ends this connection, no other
                    crash(e)
                    self.close(DEFECT, "internal error")
            elif message.type is WSMsgType.BINARY:
                self.close(UNSUPPORTED, "messages must be text")
            else:
                return

    async def _write(self, answer: web.WebSocketResponse, request: web.BaseRequest) -> None:
        from aiohttp import WSMsgType

        queue = self._queue
        try:
            while True:
                while queue:
                    text = queue.popleft()
                    async with asyncio.timeout(self._slow_reader_s):
                        await answer.send_frame(text, WSMsgType.TEXT)
                    self._queued -= len(text)
                    if self._blocked and self._queued < HIGH_WATER_BYTES // 2:
                        self._blocked = False
                        self.callbacks.unblock()
                if self._close is not None:
                    await answer.close(code=self._close[0], message=self._close[1])
                    return
                self._ready.clear()
                await self._ready.wait()
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                reset(request.transport)


Open = Callable[[Socket], None]
"""Takes a connection before its upgrade: sets ``callbacks``, or raises a ``TpoError``."""


def check_upgrade(head: Head, policy: Policy | None) -> None:
    """Refuse a handshake that is malformed, or comes from a page of a foreign origin."""
    headers = head.headers
    options = {o.strip() for o in headers.get(b"connection", b"").lower().split(b",")}
    if head.version_10 or b"upgrade" not in options:
        raise InvalidRequest(
            "a WebSocket needs HTTP/1.1 and connection: upgrade", param="connection"
        )
    if headers.get(b"sec-websocket-version") != b"13":
        raise InvalidRequest(
            "sec-websocket-version must be 13",
            param="sec-websocket-version", reason="upgrade_required", status=426,
        )  # fmt: skip
    try:
        key = base64.b64decode(headers.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise InvalidRequest(
            "sec-websocket-key must be 16 bytes in base64", param="sec-websocket-key"
        )
    origin = headers.get(b"origin")
    if origin is None or _same(origin, headers.get(b"host", b"")):
        return
    if policy is None or not policy.allows(origin):
        raise PolicyViolation(
            "pages of that origin may not connect", reason="origin_not_allowed", status=403
        )


def _same(origin: bytes, host: bytes) -> bool:
    """Whether a page was served by the host it talks to."""
    try:
        return bool(host) and urlsplit(origin.lower()).netloc == host.lower()
    except ValueError:
        return False
