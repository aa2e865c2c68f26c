"""Calls to engines of this host over shared memory, as exchanges with an upstream.

A worker's ends of the rings of ``shm.engine_rings``, and ``EngineOrigin``: the pool of a backend
that is such an engine.  What crosses is what HTTP would have brought, less the HTTP: the request's
line and body, the answer's status, media type and body.  Whoever takes the answer sees no
difference; where there are no rings, or these are full, a call goes by HTTP.

Flow control: the engine may have ``CREDIT_BYTES`` of an answer under way; more is granted as the
client takes it.  An engine that dies is an upstream that closed its connections.

A doorbell that is lost costs at most a beat of the worker (50 ms), which looks at the rings; once
that has found something, or while a full ring refuses records, they are looked at every 10 ms.  To
do so all the time would cost a wake-up a token where these are slow.

Invariants: the rings are always drained; an exchange is told one end; after ``drop`` it is told
nothing; a call that was asked over rings is not asked again by HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from secrets import randbits
from time import monotonic
from typing import Any, Final

import msgspec

from tpo_mp.errors import BackendFailure, BackendTimeout, TpoError
from tpo_mp.ports import Counter
from tpo_mp.shm import frames
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.engine_rings import NO_DOCK, EngineRings, name_word
from tpo_mp.shm.frames import HEAD, Kind

from .response_head import ResponseHead
from .upstream import NEVER, Origin, UpstreamExchange

GRANT_BYTES: Final = 16_384
RECHECK_S: Final = 0.01
DOUBT_S: Final = 1.0
"""For how long rings are looked at often after one had something that no bell told of."""
_BATCH: Final = 256
_DATA: Final = int(Kind.DATA)
_HEAD_BYTES: Final = HEAD.size
_FRAME_BYTES: Final = 512
"""What a CALL has beside its body."""
_encode = msgspec.msgpack.Encoder().encode
_decode_reply = msgspec.msgpack.Decoder(frames.EngineReply).decode


class EngineLinks:
    """One worker's ends of its rings with every engine."""

    def __init__(
        self,
        *,
        rings: EngineRings,
        seat: int,
        life: int,
        bells: Sequence[tuple[int, int]],
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """Its owner calls ``rung`` when its doorbell rings, and ``tick`` now and then."""
        docks = range(rings.docks)
        self.rings = rings
        self._loop = loop
        self._rechecks = False
        self._doubt_until = 0.0
        self._on_crash = on_crash
        self._writers = [rings.to_engine(seat, dock, life) for dock in docks]
        self._readers = [rings.from_engine(seat, dock) for dock in docks]
        self._corrupt = [0 for _ in docks]
        self._bells = [Doorbell.attach(r, w) for r, w in bells]
        self._to_ring: set[int] = set()
        self._unsent: list[deque[bytes]] = [deque() for _ in docks]
        self._calls: dict[tuple[int, int], RingCall] = {}
        self._epochs = [rings.epoch_of(dock) for dock in docks]
        # Another number than a dead worker's calls had whose answers may still come.
        self._next = randbits(32)
        self._most = self._writers[0].max_record - HEAD.size

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._calls)

    def start(self, dock: int, exchange: UpstreamExchange, origin: Origin) -> bool:
        """Ask the engine in a dock; ``False``: there is no room for it now."""
        request = exchange.request
        target = request[: request.index(b" HTTP/")]
        body = memoryview(request)[request.index(b"\r\n\r\n") + 4 :]
        epoch, length = self.rings.epoch_of(dock), len(body)
        first = max(self._most - _FRAME_BYTES - len(target), 0)
        self._next = number = self._next + 1 & 0xFFFFFFFF
        frame = frames.EngineCall(epoch, target, length, bytes(body[:first]))
        if self._unsent[dock] or not self._push(dock, HEAD.pack(Kind.CALL, number), _encode(frame)):
            return False
        for at in range(first, length, self._most):
            self._send(dock, HEAD.pack(Kind.DATA, number) + body[at : at + self._most])
        self._calls[dock, number] = RingCall(self, dock, epoch, number, exchange, origin)
        return True

    def grant(self, call: RingCall, n: int) -> bool:
        """Let the engine send so many bytes more; ``False``: not now."""
        head = HEAD.pack(Kind.CREDIT, call.number)
        return self._push(call.dock, head, _encode(frames.CreditFrame(n)), control=True)

    def cancel(self, call: RingCall) -> None:
        """Nobody wants the answer any more."""
        self.forget(call)
        if self.rings.epoch_of(call.dock) == call.epoch:
            self._send(call.dock, HEAD.pack(Kind.CANCEL, call.number), control=True)

    def forget(self, call: RingCall) -> None:
        """The call is over."""
        self._calls.pop((call.dock, call.number), None)

    # -- clock --------------------------------------------------------------------------------

    def rung(self) -> None:
        """Somebody rang the worker's doorbell."""
        if self._calls:
            self.poll()

    def poll(self) -> bool:
        """Take what engines sent, and notice those that died; say whether anything was there."""
        found = False
        epoch_of, epochs = self.rings.epoch_of, self._epochs
        for dock, reader in enumerate(self._readers):
            while reader.pending():
                records = reader.drain(_BATCH)
                found = True
                self._take(dock, records)
                if reader.corrupt != self._corrupt[dock]:
                    self._corrupt[dock] = reader.corrupt
                    self._give_up(dock, "a shared-memory record was damaged")
                if len(records) < _BATCH:
                    break
            if epoch_of(dock) != epochs[dock]:
                self._moved(dock)
        return found

    def tick(self) -> None:
        """Also heal damage to this end's words, and send what a full ring refused."""
        for writer in self._writers:
            writer.republish()
        self._look()
        self._send_again()
        for call in list(self._calls.values()):
            call.tick()

    def _look(self) -> None:
        """Look without having heard a bell; what is found then says that one was lost."""
        if self.poll():
            self._doubt_until = self._loop.time() + DOUBT_S
            self._recheck_soon()

    def _recheck_soon(self) -> None:
        if not self._rechecks:
            self._rechecks = True
            self._loop.call_later(RECHECK_S, self._recheck)

    def _recheck(self) -> None:
        self._rechecks = False
        self._look()
        self._send_again()
        if any(self._unsent) or (self.busy and self._loop.time() < self._doubt_until):
            self._recheck_soon()

    # -- inside -------------------------------------------------------------------------------

    def _send_again(self) -> None:
        for dock, unsent in enumerate(self._unsent):
            while unsent and self._writers[dock].push(unsent[0]):
                unsent.popleft()
                self._ring(dock)

    def _take(self, dock: int, records: list[bytes]) -> None:
        calls = self._calls
        for record in records:
            kind, number = HEAD.unpack_from(record)
            call = calls.get((dock, number))
            if call is None:
                continue
            try:
                if kind == _DATA:
                    call.data(record[_HEAD_BYTES:])
                elif kind == Kind.REPLY:
                    call.replied(_decode_reply(memoryview(record)[_HEAD_BYTES:]))
                elif kind == Kind.END:
                    call.ended(cut=len(record) > _HEAD_BYTES)
            except Exception as e:  # noqa: BLE001 - a defect ends no other call
                self._on_crash(e)

    def _moved(self, dock: int) -> None:
        """Another engine is in the dock, or none."""
        self._epochs[dock] = epoch = self.rings.epoch_of(dock)
        for call in [c for c in self._calls.values() if c.dock == dock and c.epoch != epoch]:
            call.lost("the engine ended")

    def _give_up(self, dock: int, why: str) -> None:
        for call in [c for c in self._calls.values() if c.dock == dock]:
            self.cancel(call)
            call.lost(why)

    def _send(self, dock: int, record: bytes, *, control: bool = False) -> None:
        """Send a record now or, when the ring is full, later."""
        unsent = self._unsent[dock]
        if (unsent and not control) or not self._writers[dock].push(record, control=control):
            unsent.append(record)
            self._recheck_soon()
        self._ring(dock)

    def _push(self, dock: int, head: bytes, body: bytes, *, control: bool = False) -> bool:
        went = self._writers[dock].push2(head, body, control=control)
        self._ring(dock)
        return went

    def _ring(self, dock: int) -> None:
        if not self._to_ring:
            self._loop.call_soon(self._ring_all)
        self._to_ring.add(dock)

    def _ring_all(self) -> None:
        for dock in self._to_ring:
            self._bells[dock].ring()
        self._to_ring.clear()


class RingCall:
    """One call at an engine: what ``UpstreamConnection`` is where there is a connection."""

    __slots__ = (
        "_begun",
        "_exchange",
        "_links",
        "_origin",
        "_owed",
        "_paused",
        "_total_at",
        "deadline",
        "dock",
        "epoch",
        "filed_at",
        "number",
    )  # fmt: skip

    def __init__(
        self,
        links: EngineLinks,
        dock: int,
        epoch: int,
        number: int,
        exchange: UpstreamExchange,
        origin: Origin,
    ) -> None:
        self._links = links
        self.dock, self.epoch, self.number = dock, epoch, number
        self._exchange = exchange
        self._origin = origin
        self._owed = 0
        self._paused = self._begun = False
        self.filed_at = 0.0
        exchange.connection = self
        now, deadlines = monotonic(), origin.deadlines
        self._total_at = now + deadlines.total_s
        self.deadline = now + min(deadlines.first_byte_s, deadlines.total_s)
        origin.wheel.add(self, now)

    def replied(self, frame: frames.EngineReply) -> None:
        """The answer's head arrived, and all of it if it is short."""
        head = ResponseHead()
        head.status, head.content_type = frame.status, frame.content_type
        if frame.retry_after_s is not None:
            head.retry_after = frame.retry_after_s
            head.passed = b"retry-after: %d\r\n" % max(1, round(frame.retry_after_s))
        if frame.body is not None:
            exchange = self._close()
            exchange.over = True
            exchange.whole(head, frame.body)
            return
        self._begun = True
        now = monotonic()
        self.deadline = min(now + self._origin.deadlines.idle_s, self._total_at)
        self._origin.wheel.add(self, now)
        self._exchange.started(head)

    def data(self, chunk: bytes) -> None:
        """A piece of the body."""
        if not self._paused:
            self.deadline = min(monotonic() + self._origin.deadlines.idle_s, self._total_at)
        self._owed += len(chunk)
        self._exchange.data(chunk)
        self.tick()

    def tick(self) -> None:
        """Grant what was taken; what a full ring refuses stays owed."""
        owed = self._owed
        if owed >= GRANT_BYTES and not self._paused and self._links.grant(self, owed):
            self._owed = 0

    def ended(self, *, cut: bool) -> None:
        """The body is complete, or never will be."""
        if cut or not self._begun:
            self.lost("the engine broke its answer off")
            return
        exchange = self._close()
        exchange.over = True
        exchange.ended()

    def lost(self, why: str) -> None:
        """Nothing more comes."""
        reason = "cut_off" if self._begun else "no_reply"
        self._close().fail(BackendFailure(why, reason=reason))

    # -- Carrier ------------------------------------------------------------------------------

    def drop(self) -> None:
        """Have the engine stop."""
        self._links.cancel(self)
        self._close()

    def pause(self) -> None:
        """Grant nothing; what is under way still comes."""
        self._paused = True
        # Its silence is now ours: only the total deadline still runs.
        self.deadline = self._total_at

    def resume(self) -> None:
        """Grant again."""
        if not self._paused:
            return
        self._paused = False
        now = monotonic()
        self.deadline = min(now + self._origin.deadlines.idle_s, self._total_at)
        self._origin.wheel.add(self, now)
        self.tick()

    def expire(self) -> None:
        """A deadline passed."""
        if not self._begun:
            error = BackendTimeout("upstream did not answer in time", reason="first_byte_timeout")
        elif monotonic() >= self._total_at:
            error = BackendTimeout("upstream took too long in all", reason="total_timeout")
        else:
            error = BackendTimeout("upstream fell silent mid-reply", reason="idle_timeout")
        exchange = self._exchange
        self.drop()
        exchange.fail(error)

    def _close(self) -> UpstreamExchange:
        """Let go of the exchange, for which the wheel would keep it."""
        self._links.forget(self)
        self.deadline = NEVER
        exchange, self._exchange = self._exchange, _NOBODY
        if exchange is not _NOBODY:
            exchange.connection = None
            self._origin.gone()
        return exchange


class _Nobody(UpstreamExchange):
    """Whom a call that is over tells the rest."""

    def whole(self, head: ResponseHead, body: bytes) -> None:
        pass

    def started(self, head: ResponseHead) -> None:
        pass

    def data(self, chunk: bytes) -> None:
        pass

    def ended(self) -> None:
        pass

    def failed(self, error: TpoError) -> None:
        pass


_NOBODY: Final = _Nobody(b"")
_NOBODY.over = True


class EngineLine:
    """The way to one engine, found anew each time it is started."""

    __slots__ = ("_links", "_word")

    def __init__(self, links: EngineLinks, name: str) -> None:
        self._links = links
        self._word = name_word(name)

    @property
    def open(self) -> bool:
        """Whether the engine takes calls there."""
        return self._links.rings.dock_of(self._word) != NO_DOCK

    def start(self, exchange: UpstreamExchange, origin: Origin) -> bool:
        """Ask it; ``False``: it must be asked by HTTP."""
        dock = self._links.rings.dock_of(self._word)
        return dock != NO_DOCK and self._links.start(dock, exchange, origin)


class EngineOrigin(Origin):
    """A pool whose calls go over rings while these are there."""

    def __init__(self, line: EngineLine, by_rings: Counter, by_http: Counter, **more: Any) -> None:
        """``more`` is as for ``Origin``; the counters count calls."""
        super().__init__(**more)
        self._line = line
        self._by_rings = by_rings
        self._by_http = by_http

    def send(self, exchange: UpstreamExchange) -> None:
        """Send one request; raises ``OverflowError`` like any pool."""
        if self.idle:
            if self._line.open:
                idle, self.idle = self.idle, []
                for connection in idle:
                    connection.transport.close()
            else:
                self._by_http.inc()
        super().send(exchange)

    def dial(self, exchange: UpstreamExchange) -> None:
        """Ask over the rings, or open a connection."""
        if self._line.start(exchange, self):
            self.count += 1
            self._by_rings.inc()
        else:
            self._by_http.inc()
            super().dial(exchange)
