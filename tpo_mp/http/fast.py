"""The fast lane: one ``asyncio.Protocol`` per client connection, no task per request.

Bytes in → head found, remembered or parsed → body complete → handler called in the same turn.
Chunked, ``Expect`` and upgrade requests, which need a whole HTTP server, leave for the full lane
with their unread bytes once every earlier reply is written.

Invariants: at most one request of a connection is being answered, and none while the client leaves
an earlier answer unread; what it pipelines meanwhile waits in ``_pending`` (at most 64 KiB, then
the connection closes); reading is never paused, because a paused reader does not see the client
leave; deadlines are absolute, and a closing connection has one too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

from tpo_mp.errors import TpoError
from tpo_mp.types import Stream

from .compress import INLINE_BYTES, Coding, Packer, worthwhile
from .edge import ClientEdge, reset
from .exchange import JSON, REASON
from .head import BadHead, Head
from .tally import CUT, LEFT

MAX_PIPELINED_BYTES = 65536
NEVER = float("inf")
_FIRST = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\r\n")


class FastConnection(asyncio.Protocol):
    """A client connection; also the ``Exchange`` of its current request."""

    __slots__ = (
        "__weakref__", "_began_at", "_body", "_body_got", "_chunked", "_client_paused", "_edge",
        "_packer", "_pending", "_status", "body", "deadline", "filed_at", "head",
        "on_disconnect", "open", "peer", "requests", "source", "transport",
    )  # fmt: skip

    def __init__(self, edge: ClientEdge) -> None:
        self._edge = edge
        self.head: Head = cast("Head", None)
        self.body = b""
        self.open = False
        self.on_disconnect: Callable[[], None] | None = None
        self.source: Stream | None = None
        self.requests = 0
        self.deadline = NEVER
        self.filed_at = 0.0
        self._packer: Packer | None = None
        self._pending = b""
        self._body: list[bytes] | None = None
        self._body_got = 0
        self._chunked = False
        self._client_paused = False
        self._began_at = 0.0
        self._status = LEFT

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.peer = _address(self.transport)
        self._edge.connections.add(self)
        now = monotonic()
        self.deadline = now + min(self._edge.header_timeout_s, self._edge.fresh_s)
        self._edge.wheel.add(self, now)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._edge.connections.discard(self)
        self.deadline = NEVER
        self._pending = b""
        self._body = None
        if self.open:
            self.open = False
            self._count(self._status)
            left = self.on_disconnect
            self.on_disconnect = self.source = None
            if left is not None:
                left()

    def eof_received(self) -> bool:
        # A half-closed client cannot be told from one that left; closing cancels its call.
        return False

    def pause_writing(self) -> None:
        self._client_paused = True
        if self.source is not None:
            self.source.pause()
        self.deadline = (now := monotonic()) + self._edge.slow_reader_s
        self._edge.wheel.add(self, now)

    def resume_writing(self) -> None:
        self._client_paused = False
        self.deadline = NEVER
        if self.source is not None:
            self.source.resume()
        elif not self.open:
            self._idle(monotonic())
            if self._pending:
                self._edge.loop.call_soon(self._next)

    def expire(self) -> None:
        """The deadline passed: idle, a slow head or body, or a client that stopped reading."""
        if self.open or self._client_paused or self.transport.is_closing():
            reset(self.transport)
        elif self._body is not None or self._pending:
            self._refuse(408, "request took too long to arrive")
        else:
            self._close()

    def data_received(self, data: bytes) -> None:
        if self.open or self._client_paused:
            self._pending += data
            if len(self._pending) > MAX_PIPELINED_BYTES:
                self.transport.abort()
        elif self._body is not None:
            self._more_body(data)
        elif self._pending:
            data = self._pending + data
            self._pending = b""
            self._feed(data, begun=True)
        else:
            self._feed(data)

    # -- requests in ------------------------------------------------------------------------

    def _feed(self, data: bytes, *, begun: bool = False) -> None:
        """Take a request from ``data``; ``begun``: its first bytes came earlier."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._partial_head(data, begun=begun)
            return
        raw = data[: end + 4]
        head = self._edge.heads.get(raw)
        if head is None:
            if len(raw) > self._edge.max_header_bytes:
                self._refuse(431, "request head is too large")
                return
            try:
                head = self._edge.heads.parse(raw.lstrip(b"\r\n") if raw[0] in b"\r\n" else raw)
            except BadHead as e:
                self._refuse(e.status, e.message)
                return
        self.head = head
        if head.full_lane or head.refusal is not None:
            self._unusual(head, data, end + 4)
            return
        total = end + 4 + head.content_length
        size = len(data)
        if size == total:
            self.body = data[end + 4 :]
        elif size > total:
            self.body = data[end + 4 : total]
            self._pending = data[total:]
            if size - total > MAX_PIPELINED_BYTES:
                self.transport.abort()
                return
        else:
            self._body = [data[end + 4 :]]
            self._body_got = size - end - 4
            self._await_bytes(max(self._edge.body_timeout_s, head.content_length / 1024))
            return
        self._dispatch(head)

    def _dispatch(self, head: Head) -> None:
        edge = self._edge
        self.open = True
        self.deadline = NEVER
        self.requests += 1
        self._began_at = monotonic()
        self._status = LEFT
        edge.count_fast()
        if head.client is not None:
            self.peer = edge.peer(_address(self.transport), head.client)
        endpoint = head.endpoint
        assert endpoint is not None
        try:
            waiting = endpoint.handler(self)
        except TpoError as e:
            edge.fail(self, e)
            return
        except Exception as e:  # noqa: BLE001 - a defect answers 500, never a dead connection
            edge.crash(self, e)
            return
        if waiting is not None:
            edge.adopt(self, cast("Any", waiting))

    def _partial_head(self, data: bytes, *, begun: bool) -> None:
        if data and data[0] not in _FIRST:
            self._refuse(400, "not an HTTP request")
        elif len(data) > self._edge.max_header_bytes:
            self._refuse(431, "request head is too large")
        elif data.count(b"\n") != data.count(b"\r\n"):
            self._refuse(400, "bare line feed in request head")
        else:
            self._pending = data
            # The clock of a head starts at its first byte, not at each one after it.
            if self.requests and not begun:
                self._await_bytes(self._edge.header_timeout_s)

    def _more_body(self, data: bytes) -> None:
        assert self._body is not None
        self._body.append(data)
        self._body_got += len(data)
        want = self.head.content_length
        if self._body_got < want:
            return
        whole = b"".join(self._body)
        self._body = None
        self.body = whole[:want] if self._body_got > want else whole
        self._pending = whole[want:]
        self._dispatch(self.head)

    def _unusual(self, head: Head, data: bytes, body_at: int) -> None:
        """A refused request, or one for the full lane."""
        refusal = head.refusal
        if refusal is not None:
            # Its body may never come or be huge: answer now, skip it only when it is at hand.
            total = body_at + head.content_length
            self.requests += 1
            self.open = True
            self._began_at = monotonic()
            self.body = b""
            if head.full_lane or len(data) < total:
                self._pending = b""
                self._edge.fail(self, refusal, close=True)
            else:
                self._pending = data[total:]
                self._edge.fail(self, refusal)
            return
        self.deadline = NEVER
        self._edge.connections.discard(self)
        self._edge.to_full_lane(self.transport, data)

    def _await_bytes(self, seconds: float) -> None:
        now = monotonic()
        self.deadline = now + seconds
        self._edge.wheel.add(self, now)

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request whose framing is in doubt, and close."""
        self._pending = b""
        self._body = None
        self.transport.write(self._edge.bad_request(status, message))
        self._close()
        self._edge.count_bad()

    # -- responses out ----------------------------------------------------------------------

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        head, edge = self.head, self._edge
        if head.shaped:
            self._shape(status, body, content_type, extra)
            return
        keep = head.keep_alive and not edge.closing
        self.transport.write(
            b"".join(
                (
                    STATUS_LINE.get(status) or _status_line(status),
                    b"content-type: ",
                    content_type,
                    b"\r\ncontent-length: %d\r\n" % len(body),
                    extra,
                    head.whole,
                    edge.plain_date if edge.stamp is None else edge.date_line,
                    b"\r\n" if keep and not head.version_10 else _connection(keep),
                    body,
                )
            )
        )
        self._close_request(keep, status)

    def _shape(self, status: int, body: bytes, content_type: bytes, extra: bytes) -> None:
        """Send a whole response to one of the heads that ask for more than its bytes."""
        head = self.head
        coding = head.coding
        if coding is None or len(body) < head.pack_from or not worthwhile(content_type, extra):
            self._send(status, body, content_type, extra)
        elif len(body) <= INLINE_BYTES:
            self._send_smaller(status, body, coding, coding.squeeze(body), content_type, extra)
        else:
            # Beside the loop; the request stays open, so nothing else is answered meanwhile.
            self.on_disconnect = None
            work = self._edge.loop.run_in_executor(None, coding.squeeze, body)
            work.add_done_callback(
                lambda done: self._send_smaller(
                    status, body, coding, done.result(), content_type, extra
                )
            )

    def _send_smaller(
        self, status: int, body: bytes, coding: Coding, squeezed: bytes, content_type: bytes,
        extra: bytes,
    ) -> None:  # fmt: skip
        if not self.open:
            return  # the client left
        if len(squeezed) < len(body):
            body, extra = squeezed, extra + coding.line
        self._send(status, body, content_type, extra)

    def _send(self, status: int, body: bytes, content_type: bytes, extra: bytes) -> None:
        head = self.head
        keep = head.keep_alive and not self._edge.closing
        bodiless = status in (204, 304)
        self.transport.write(
            b"%b%b%b%b%b%b%b"
            % (
                STATUS_LINE.get(status) or _status_line(status),
                b""
                if bodiless
                else b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)),
                extra,
                head.whole,
                self._edge.date_line,
                b"\r\n" if keep and not head.version_10 else _connection(keep),
                b"" if bodiless or head.method == "HEAD" else body,
            )
        )
        self._close_request(keep, status)

    def begin(self, status: int, content_type: bytes, extra: bytes, source: Stream | None) -> None:
        head = self.head
        self._chunked = not head.version_10
        keep = head.keep_alive and not self._edge.closing and self._chunked
        coding, self._packer = head.stream_coding, None
        if coding is not None and worthwhile(content_type, extra):
            extra += coding.line
            self._packer = coding.packer()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%b%b%b%b%b\r\n"
            % (
                status,
                REASON.get(status, b"Status"),
                content_type,
                b"transfer-encoding: chunked\r\n" if self._chunked else b"",
                extra,
                head.extra,
                self._edge.date_line,
                b"" if keep else b"connection: close\r\n",
            )
        )
        self._status = status
        self.source = source
        if self._client_paused and source is not None:
            source.pause()

    def write(self, data: bytes) -> None:
        if self._packer is not None:
            data = self._packer.part(data)
        if self._chunked:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self.transport.write(data)

    def finish(self) -> None:
        if self._packer is not None:
            end, self._packer = self._packer.end(), None
            self.write(end)
        if self._chunked:
            self.transport.write(b"0\r\n\r\n")
        keep = self.head.keep_alive and self._chunked and not self._edge.closing
        self._close_request(keep, self._status)

    def abort(self, *, hard: bool = False) -> None:
        self.on_disconnect = self.source = None
        if self.open:
            self.open = False
            self._count(CUT if self._status == LEFT else self._status)
        if hard:
            reset(self.transport)
        else:
            self.transport.abort()

    def close_when_idle(self, linger_s: float, fresh_s: float) -> None:
        """Draining: leave after the current reply, or when nothing comes for ``linger_s``."""
        if self.open or self._body is not None or self._pending:
            return
        if not linger_s:
            self._close()
        elif self.requests:
            self._await_bytes(linger_s)
        elif monotonic() + fresh_s < self.deadline:
            self._await_bytes(fresh_s)

    def _count(self, status: int) -> None:
        self._edge.tally.add(self.head.tally, status, monotonic() - self._began_at)

    def _close_request(self, keep: bool, status: int) -> None:
        edge, now = self._edge, monotonic()
        edge.tally.add(self.head.tally, status, now - self._began_at)
        self.open = False
        self.on_disconnect = self.source = None
        self.body = b""
        if not keep or self.requests >= edge.max_requests:
            self._close()
        elif not self._client_paused:
            self._idle(now)
            if self._pending:
                # Not from inside the handler's stack: a long pipeline would recurse.
                edge.loop.call_soon(self._next)

    def _idle(self, now: float) -> None:
        self.deadline = now + self._edge.idle_timeout_s
        if self.filed_at == 0.0:
            self._edge.wheel.add(self, now)

    def _close(self) -> None:
        """Close once everything written has left; a client that does not read it is cut off."""
        self._await_bytes(self._edge.slow_reader_s)
        self.transport.close()

    def _next(self) -> None:
        waits = self._pending and not self.open and not self._client_paused
        if waits and not self.transport.is_closing():
            data, self._pending = self._pending, b""
            self._feed(data)


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""


def _connection(keep: bool) -> bytes:
    return b"connection: keep-alive\r\n\r\n" if keep else b"connection: close\r\n\r\n"


def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, REASON.get(status, b"Status"))


STATUS_LINE = {status: _status_line(status) for status in REASON}
