"""Calls forwarded to the shard that holds their session, and served for others.

The owner (A) keeps the client; the server (B) runs the chain.  A's side of a forwarded call is a
``Remote``: a promise of a reply, then the stream itself.  B's side is a ``Served``: the sink of the
reply, writing frames back.

Flow control: B may have ``credit_bytes`` of one call under way; at zero it pauses that upstream.
A grants credit back as its client takes bytes.  Frames a full ring refused wait in ``Served`` (one
read's worth, since the upstream is paused) and go out when the ring drains.

Invariants: the reader always drains; only *new* calls are refused; END follows the last DATA; when
the peer dies, A's calls fail with ``WorkerLost`` and B's are cancelled within 50 ms.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

import msgspec

from tpo_mp.errors import Cancelled, Shed, TpoError, WorkerLost, from_wire
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.registry import Registry, RegistryWriter
from tpo_mp.types import NO_DEADLINE, Call, Priority, Reply, Sink, Stream, Usage

from .links import Links
from .placing import Placing

GRANT_BYTES = 16384
_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(frames.CallFrame).decode
_decode_credit = msgspec.msgpack.Decoder(frames.CreditFrame).decode
_decode_reply = msgspec.msgpack.Decoder(frames.ReplyFrame).decode
_decode_end = msgspec.msgpack.Decoder(frames.EndFrame).decode

Serve = Callable[[Call], Awaitable[Reply]]


class Bounced(Exception):
    """The chosen shard does not hold that key any more: place the call again."""


class Mesh:
    """Both sides of forwarding for one shard."""

    def __init__(
        self,
        *,
        links: Links,
        placing: Placing,
        registry: Registry,
        writer: RegistryWriter,
        seat: int,
        serve: Serve,
        config_epoch: Callable[[], int],
        credit_bytes: int,
        inline_bytes: int,
        on_busy: Callable[[], None],
    ) -> None:
        self.links = links
        self._placing = placing
        self._registry = registry
        self._writer = writer
        self._seat = seat
        self._serve = serve
        self._config_epoch = config_epoch
        self.credit_bytes = credit_bytes
        self._inline_bytes = min(inline_bytes, links.max_record // 2)
        self._next = 0
        self._remotes: dict[tuple[int, int], Remote] = {}
        self._served: dict[tuple[int, int], Served] = {}
        self.blocked: set[Served] = set()
        self._corrupt: dict[int, int] = {}
        self._on_busy = on_busy

    @property
    def busy(self) -> bool:
        """Whether calls are under way on the mesh, so that waits must be short."""
        return bool(self._remotes or self._served)

    # -- owner's side -------------------------------------------------------------------------

    def forward(self, call: Call, seat: int) -> Remote | None:
        """Send a call to ``seat``; ``None`` when its body cannot travel.  Raises ``Shed``."""
        body, offset = call.body, 0
        length = len(body)
        if length > self._inline_bytes:
            if call.slot < 0:
                return None
            offset, kept = self._writer.body_ref(call.slot)
            if kept != length:
                return None
            body = b""
        self._next = number = self._next + 1 & 0xFFFFFFFF
        budget_s = 0.0 if call.deadline == NO_DEADLINE else max(call.deadline - monotonic(), 0.001)
        frame = frames.CallFrame(
            call.id,
            self._config_epoch(),
            self._placing.version,
            call.model,
            call.stream,
            call.api,
            call.tenant,
            call.key_id,
            call.session,
            call.affinity,
            int(call.priority),
            budget_s,
            call.client_request_id,
            call.authorization,
            call.traceparent,
            call.usage_wanted,
            body,
            offset,
            length,
        )
        if not self.links.push(seat, HEAD.pack(Kind.CALL, number), _encode(frame)):
            raise Shed(
                "the shard that holds this session is overloaded",
                reason="ring_full",
                retry_after_s=1,
            )
        remote = Remote(self, call, seat, number, self.links.life_of(seat))
        self._remotes[seat, number] = remote
        self._on_busy()
        return remote

    def forget(self, remote: Remote) -> None:
        """The call is over on this side."""
        self._remotes.pop((remote.seat, remote.number), None)

    # -- frames in ----------------------------------------------------------------------------

    def take(self, source: int, kind: int, number: int, payload: memoryview) -> bool:
        """Handle one frame if it is the mesh's; answers whether it was."""
        if kind == Kind.DATA:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.data(bytes(payload))
        elif kind == Kind.CREDIT:
            served = self._served.get((source, number))
            if served is not None:
                served.grant(_decode_credit(payload).n)
        elif kind == Kind.REPLY:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.replied(_decode_reply(payload))
        elif kind == Kind.END:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.ended(_decode_end(payload))
        elif kind == Kind.CALL:
            self._called(source, number, _decode_call(payload))
        elif kind == Kind.CANCEL:
            served = self._served.pop((source, number), None)
            if served is not None:
                served.cancel()
        elif kind == Kind.BOUNCE:
            remote = self._remotes.pop((source, number), None)
            if remote is not None:
                remote.bounced()
        else:
            return False
        return True

    # -- server's side ------------------------------------------------------------------------

    def _called(self, source: int, number: int, frame: frames.CallFrame) -> None:
        placing = self._placing
        placing.refresh()
        if (
            frame.map_version < placing.version
            and frame.affinity is not None
            and placing.seat_of(frame.tenant, frame.affinity) != self._seat
        ):
            self.links.send(source, HEAD.pack(Kind.BOUNCE, number), control=True)
            return
        served = Served(self, source, number, self.links.life_of(source))
        self._served[source, number] = served
        self._on_busy()
        body = frame.body or self._registry.read_body(source, frame.arena_offset, frame.body_length)
        call = Call(
            id=frame.call_id,
            model=frame.model,
            body=body,
            stream=frame.stream,
            started_at=monotonic(),
        )
        call.api = frame.api
        call.tenant, call.key_id = frame.tenant, frame.key_id
        call.session, call.affinity = frame.session, frame.affinity
        call.priority = Priority(frame.priority)
        call.client_request_id = frame.client_request_id
        call.authorization, call.traceparent = frame.authorization, frame.traceparent
        call.usage_wanted = frame.usage_wanted
        if frame.budget_s:
            call.deadline = call.started_at + frame.budget_s
        served.start(call, self._serve)

    def finished(self, served: Served) -> None:
        """A served call is over."""
        self._served.pop((served.seat, served.number), None)
        self.blocked.discard(served)

    # -- clock --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Retry what a full ring refused, and notice peers that died or rings that broke."""
        for served in list(self.blocked):
            served.flush()
        life_of = self.links.life_of
        broken = self._newly_corrupt()
        for remote in list(self._remotes.values()):
            if remote.life != life_of(remote.seat):
                remote.lost("the shard that served this call died")
            elif remote.seat in broken:
                remote.lost("a shared-memory record was damaged")
        for served in list(self._served.values()):
            if served.life != life_of(served.seat) or served.seat in broken:
                self._served.pop((served.seat, served.number), None)
                served.cancel()

    def _newly_corrupt(self) -> set[int]:
        seen = self.links.corrupt_sources()
        grown = {seat for seat, n in seen.items() if n != self._corrupt.get(seat, 0)}
        self._corrupt = seen
        return grown


class Remote:
    """A forwarded call on its owner's side: a promise of a reply, then its stream."""

    __slots__ = (
        "_buffer",
        "_ended",
        "_error",
        "_left",
        "_mesh",
        "_over",
        "_owed",
        "_paused",
        "_reply",
        "_sink",
        "_whole",
        "call",
        "life",
        "number",
        "promise",
        "seat",
    )

    def __init__(
        self, mesh: Mesh, call: Call, seat: int, number: int, life: tuple[int, int]
    ) -> None:
        self._mesh = mesh
        self.call = call
        self.seat = seat
        self.number = number
        self.life = life
        self.promise: Promise[Reply] = Promise(self.cancel)
        self._reply: Reply | None = None
        self._whole: list[bytes] | None = None
        self._buffer: list[bytes] = []
        self._sink: Sink | None = None
        self._paused = False
        self._owed = 0
        self._ended = False
        self._error: TpoError | None = None
        self._over = False

    def replied(self, frame: frames.ReplyFrame) -> None:
        """The reply's head arrived."""
        call = self.call
        call.backend, call.attempts = frame.backend, frame.attempts
        now = monotonic()
        call.first_byte_at = now
        call.upstream_at = now - frame.first_byte_s
        reply = Reply(
            frame.status,
            frame.body,
            content_type=frame.content_type,
            headers=frame.headers,
            backend=frame.backend,
        )
        if frame.prompt_tokens >= 0 or frame.completion_tokens >= 0:
            reply.usage = Usage(frame.prompt_tokens, frame.completion_tokens)
        self._reply = reply
        if frame.body is not None:
            self._close()
            self.promise.resolve(reply)
        elif frame.stream:
            reply.stream = self
            self.promise.resolve(reply)
        else:
            self._whole = []

    def data(self, chunk: bytes) -> None:
        if self._over:
            return
        self._owed += len(chunk)
        if self._whole is not None:
            self._whole.append(chunk)
        elif self._sink is not None:
            self._sink.data(chunk)
        else:
            self._buffer.append(chunk)
            return
        if self._owed >= GRANT_BYTES and not self._paused:
            self._grant()

    def ended(self, frame: frames.EndFrame) -> None:
        """The last frame arrived."""
        error = None if frame.error is None else from_wire(frame.error)
        if frame.attempts:
            self.call.attempts = frame.attempts
            self.call.backend = frame.backend
        reply = self._reply
        if reply is not None:
            if frame.prompt_tokens >= 0 or frame.completion_tokens >= 0:
                reply.usage = Usage(frame.prompt_tokens, frame.completion_tokens)
            reply.finish_reason = frame.finish_reason
        self._close()
        if reply is None or self._whole is not None:
            if error is not None or reply is None or self._whole is None:
                self.promise.reject(error or WorkerLost("the shard ended the call without a reply"))
            else:
                reply.body = b"".join(self._whole)
                self.promise.resolve(reply)
        else:
            self._finish(error)

    def bounced(self) -> None:
        """The other shard does not hold the session any more."""
        self._over = True
        self.promise.reject(Bounced())

    def lost(self, why: str) -> None:
        """The other shard is gone."""
        self._close()
        error = WorkerLost(why)
        if self._reply is None or self._whole is not None:
            self.promise.reject(error)
        else:
            self._finish(error)

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        buffered, self._buffer = self._buffer, []
        for chunk in buffered:
            sink.data(chunk)
        if self._ended:
            self._sink = None
            sink.end(self._error)
        elif self._owed >= GRANT_BYTES and not self._paused:
            self._grant()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._owed and not self._over:
            self._grant()

    def cancel(self) -> None:
        self._sink = None
        if not self._over:
            self._close()
            self._mesh.links.send(self.seat, HEAD.pack(Kind.CANCEL, self.number), control=True)

    def _grant(self) -> None:
        owed = self._owed
        head = HEAD.pack(Kind.CREDIT, self.number)
        # Refused credit is not lost: it stays owed and goes with the next chunk or tick.
        if self._mesh.links.push(self.seat, head, _encode(frames.CreditFrame(owed)), control=True):
            self._owed = 0

    def _close(self) -> None:
        self._over = True
        self._mesh.forget(self)

    def _finish(self, error: TpoError | None) -> None:
        self._ended = True
        self._error = error
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)


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
        except TpoError as e:
            self._done(None, e)

    def _done(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._left:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            return
        if reply is None:
            failure = error if isinstance(error, TpoError) else Cancelled("the call was cancelled")
            self.end(failure)
            return
        self._reply = reply
        call = self._call
        usage = reply.usage or Usage()
        body = reply.body
        inline = body is not None and len(body) <= self._mesh.links.max_record // 2
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
        )
        if not self._pending:
            self.flush()

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
