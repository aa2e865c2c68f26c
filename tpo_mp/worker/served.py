"""A call served for another shard: the sink of its reply, writing frames back.

Invariants: frames go out in order, END last; the upstream is paused while frames wait or credit is
spent; after ``cancel`` nothing is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from tpo_mp.errors import TpoError
from tpo_mp.pipeline.delivery import UnexpectedError, as_tpo, forget_frames
from tpo_mp.pipeline.promise import run
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply, Stream, Usage

if TYPE_CHECKING:
    from .mesh import Mesh

_encode = msgspec.msgpack.Encoder().encode

Serve: TypeAlias = Callable[[Call], Awaitable[Reply]]


class Served:
    """A call served for another shard: the sink of its reply, writing frames back."""

    __slots__ = (
        "_call",
        "_cancel",
        "_credit",
        "_end",
        "_left",
        "_mesh",
        "_paused",
        "_pending",
        "_reply",
        "_stream",
        "life",
        "number",
        "seat",
    )

    def __init__(self, mesh: Mesh, seat: int, number: int, life: tuple[int, int]) -> None:
        self._mesh = mesh
        self.seat = seat
        self.number = number
        self.life = life
        self._credit = mesh.credit_bytes
        self._pending: list[tuple[Kind, bytes]] = []
        self._end: frames.EndFrame | None = None
        self._stream: Stream | None = None
        self._reply: Reply | None = None
        self._paused = False
        self._cancel: Callable[[], object] | None = None
        self._left = False

    def start(self, call: Call, serve: Serve) -> None:
        """Run the chain for ``call``."""
        self._call = call
        try:
            self._cancel = run(serve(call), self._done)
        except Exception as e:  # noqa: BLE001 - a defect in a feature fails its call, not the shard
            self._done(None, e)

    def refuse(self, call: Call, error: TpoError) -> None:
        """Answer ``error`` without running anything."""
        self._call = call
        self.end(error)

    def _done(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._left:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            return
        if reply is None:
            failure = as_tpo(error)
            if isinstance(failure, UnexpectedError) and error is not None:
                self._mesh.on_crash(error)  # the owner only hears that there was one
            self.end(failure)
            if error is not None:
                forget_frames(error)
            return
        self._reply = reply
        call = self._call
        usage = reply.usage or Usage()
        body = reply.body
        small = self._mesh.links.max_record // 2
        inline = body is not None and len(body) + len(reply.headers) <= small
        frame = frames.ReplyFrame(
            reply.status,
            reply.content_type,
            reply.headers,
            call.backend,
            reply.stream is not None,
            body if inline else None,
            usage.prompt,
            usage.completion,
            call.attempts,
            max(call.first_byte_at - call.upstream_at, 0.0),
            usage.cached,
            call.cache,
            call.unclear,
            call.aside,
        )
        self._queue(Kind.REPLY, _encode(frame))
        if reply.stream is not None:
            self._stream = reply.stream
            reply.stream.attach(self)
        elif body is not None and not inline:
            self.data(body)
            self.end(None)
        elif not self._pending:
            self._mesh.finished(self)
        else:
            self._end = None

    # -- Sink ---------------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        most = self._mesh.links.max_record - HEAD.size
        if len(chunk) <= most:
            self._queue(Kind.DATA, chunk)
        else:
            for at in range(0, len(chunk), most):
                self._queue(Kind.DATA, chunk[at : at + most])

    def end(self, error: TpoError | None) -> None:
        usage = (self._reply.usage if self._reply else None) or Usage()
        finish = self._reply.finish_reason if self._reply else ""
        self._end = frames.EndFrame(
            None if error is None else error.to_wire(),
            usage.prompt,
            usage.completion,
            finish,
            self._call.attempts,
            self._call.backend,
            None if error is None else self._fitting(error.body),
            usage.cached,
            self._call.unclear,
            self._call.aside,
        )
        if not self._pending:
            self.flush()

    def _fitting(self, body: bytes | None) -> bytes | None:
        """An upstream's error body, if it fits into the END frame."""
        return body if body is not None and len(body) <= self._mesh.links.max_record // 2 else None

    # -- frames out ---------------------------------------------------------------------------

    def _queue(self, kind: Kind, payload: bytes) -> None:
        if self._pending or not self._send(kind, payload):
            self._pending.append((kind, payload))
            self._mesh.blocked.add(self)
        self._check_credit()

    def _send(self, kind: Kind, payload: bytes) -> bool:
        if kind is Kind.DATA and self._credit <= 0:
            return False
        if not self._mesh.links.push(self.seat, HEAD.pack(kind, self.number), payload):
            return False
        if kind is Kind.DATA:
            self._credit -= len(payload)
        return True

    def flush(self) -> None:
        """Send what waits, in order, then the end."""
        pending = self._pending
        sent = 0
        for kind, payload in pending:
            if not self._send(kind, payload):
                break
            sent += 1
        del pending[:sent]
        if not pending:
            self._mesh.blocked.discard(self)
            if self._end is not None:
                head = HEAD.pack(Kind.END, self.number)
                if self._mesh.links.push(self.seat, head, _encode(self._end), control=True):
                    self._mesh.finished(self)
                else:
                    self._mesh.blocked.add(self)
            elif self._reply is not None and self._reply.stream is None:
                self._mesh.finished(self)
        self._check_credit()

    def grant(self, n: int) -> None:
        """The owner's client took ``n`` bytes."""
        self._credit += n
        if self._pending:
            self.flush()
        self._check_credit()

    def _check_credit(self) -> None:
        stream = self._stream
        if stream is None:
            return
        full = self._credit <= 0 or bool(self._pending)
        if full and not self._paused:
            self._paused = True
            stream.pause()
        elif not full and self._paused:
            self._paused = False
            stream.resume()

    def cancel(self) -> None:
        """The owner's client left, or the owner died."""
        self._left = True
        self._mesh.finished(self)
        if self._stream is not None:
            self._stream.cancel()
        elif self._cancel is not None:
            self._cancel()
