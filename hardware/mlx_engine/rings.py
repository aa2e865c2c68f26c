"""Calls from the workers of the host over shared memory; see ``tpo_mp.shm.engine_rings``.

The engine's ends of the rings of its dock.  A call becomes a task, as it does in an HTTP server,
and ``RingOut`` is where its answer goes.

Invariants: the rings are always drained; of one answer no more is under way than its reader
granted, and a reader that is behind holds up no other; calls of a worker that died end with it; a
worker that a damaged ring lost something of has all of its calls ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from tpo_mp.shm import frames
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.engine_rings import CREDIT_BYTES, EngineRings
from tpo_mp.shm.frames import HEAD, Kind

RECHECK_S: Final = 0.01
LOOK_S: Final = 0.05
DOUBT_S: Final = 1.0
"""For how long rings are looked at often after one had something that no bell told of."""
_BATCH: Final = 256
_JSON: Final = b"application/json"
_SSE: Final = b"text/event-stream"
_CUT: Final = b"\x01"
_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(frames.EngineCall).decode
_decode_credit = msgspec.msgpack.Decoder(frames.CreditFrame).decode


class RingOut:
    """One call: what came of its body, and where its answer goes."""

    def __init__(self, ends: RingEnds, seat: int, number: int, call: frames.EngineCall) -> None:
        self._ends = ends
        self.seat, self.number = seat, number
        self.target = call.target.decode("latin-1")
        self.length = call.length
        self.parts = [call.body]
        self.came = len(call.body)
        self.credit = CREDIT_BYTES
        self.begun = self.ended = False
        self.go = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def whole(self, status: int, body: bytes, retry_after_s: float | None) -> None:
        """Answer with one JSON body."""
        short = len(body) <= self._ends.most // 2
        head = frames.EngineReply(status, _JSON, retry_after_s, body if short else None)
        await self._send(Kind.REPLY, _encode(head))
        self.begun = True
        if short:
            self.ended = True
            return
        await self.write(body)
        await self.end()

    async def begin(self) -> None:
        """Begin a stream of events."""
        await self._send(Kind.REPLY, _encode(frames.EngineReply(200, _SSE, None, None)))
        self.begun = True

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while its reader is behind."""
        most = self._ends.most
        if len(data) <= most:
            await self._send(Kind.DATA, data)
            return
        for at in range(0, len(data), most):
            await self._send(Kind.DATA, data[at : at + most])

    async def end(self, said: bytes = b"") -> None:
        """Say that nothing follows."""
        if not self.ended:
            self.ended = True
            await self._send(Kind.END, said)

    async def _send(self, kind: Kind, payload: bytes) -> None:
        ends, data = self._ends, kind is Kind.DATA
        while (data and self.credit <= 0) or not ends.push(self, kind, payload):
            self.go.clear()
            ends.waiting.add(self)
            ends.look_soon()
            await self.go.wait()
        if data:
            self.credit -= len(payload)


class RingEnds:
    """The engine's ends of all its rings."""

    def __init__(
        self,
        ticket: Mapping[str, Any],
        serve: Callable[[str, bytes | None, RingOut], Awaitable[None]],
        most_body: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """``ticket`` is what the keeper said; raises ``Fault`` when it is of another layout.

        ``serve`` is told a call's method and path and its body, ``None`` if that is longer than
        ``most_body`` bytes.
        """
        dock, epoch = ticket["dock"], ticket["epoch"]
        rings = EngineRings.attach(ticket["fd"], ticket["seats"], ticket["docks"])
        for fd in {ticket["fd"], *ticket["bell"], *ticket["bells"]}:
            os.set_inheritable(fd, False)
        seats = range(rings.seats)
        self._rings, self._dock, self._epoch = rings, dock, epoch
        self._serve, self._most_body, self._loop = serve, most_body, loop
        self._writers = [rings.to_seat(seat, dock, epoch) for seat in seats]
        self._readers = [rings.from_seat(seat, dock) for seat in seats]
        self._lives = [rings.life_of(seat) for seat in seats]
        self._corrupt = [0 for _ in seats]
        self._bell = Doorbell.attach(*ticket["bell"])
        self._bells = [Doorbell.attach(w, w) for w in ticket["bells"]]
        self._to_ring: set[int] = set()
        self._calls: dict[tuple[int, int], RingOut] = {}
        self._uncut: list[RingOut] = []
        self._publish_at = self._doubt_until = 0.0
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: set[RingOut] = set()
        self.most = self._writers[0].max_record - HEAD.size

    def open(self) -> None:
        """Take calls from now on."""
        self._loop.add_reader(self._bell.fileno(), self._rung)
        self._rings.serve(self._dock, self._epoch)
        self._look()

    async def close(self, grace_s: float) -> None:
        """Take none any more; those that are open have some seconds to end in."""
        self._rings.serve(self._dock, 0)
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._ring_all()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._bell.fileno())

    def push(self, call: RingOut, kind: Kind, payload: bytes) -> bool:
        """Send a record of a call; ``False``: there is no room now."""
        seat = call.seat
        head = HEAD.pack(kind, call.number)
        went = self._writers[seat].push2(head, payload, control=kind is Kind.END)
        if not self._to_ring:
            self._loop.call_soon(self._ring_all)
        self._to_ring.add(seat)
        return went

    def _ring_all(self) -> None:
        for seat in self._to_ring:
            self._bells[seat].ring()
        self._to_ring.clear()

    def behind(self) -> int:
        """How many answers wait until their readers have taken more."""
        return sum(call.credit <= 0 for call in self._calls.values())

    # -- records in ---------------------------------------------------------------------------

    def _rung(self) -> None:
        self._bell.clear()
        self._poll()

    def _look(self) -> None:
        """A bell may be lost, and nobody tells when a full ring has room again."""
        now = self._loop.time()
        if self._poll():
            self._doubt_until = now + DOUBT_S
        if now >= self._publish_at:
            self._publish_at = now + LOOK_S
            for writer in self._writers:  # which heals damage to what they said last
                writer.republish()
        waiting, self.waiting = self.waiting, set()
        for call in waiting:
            call.go.set()
        uncut, self._uncut = self._uncut, []
        self._cut(uncut)
        self._soon = bool(waiting or self._uncut or now < self._doubt_until)
        self._timer = self._loop.call_later(RECHECK_S if self._soon else LOOK_S, self._look)

    def look_soon(self) -> None:
        """Somebody waits for room, of which no bell will tell."""
        if not self._soon:
            self._soon = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(RECHECK_S, self._look)

    def _poll(self) -> bool:
        """Take what came; answers whether anything did."""
        found = False
        for seat, reader in enumerate(self._readers):
            if self._rings.life_of(seat) != self._lives[seat]:
                self._lives[seat] = self._rings.life_of(seat)
                self._leave(seat)
            while reader.pending():
                records = reader.drain(_BATCH)
                found = True
                for record in records:
                    self._take(seat, record)
                if reader.corrupt != self._corrupt[seat]:
                    self._corrupt[seat] = reader.corrupt
                    self._leave(seat)
                if len(records) < _BATCH:
                    break
        return found

    def _leave(self, seat: int) -> None:
        for call in [call for call in self._calls.values() if call.seat == seat]:
            self._cancel(call)

    def _take(self, seat: int, record: bytes) -> None:
        kind, number = HEAD.unpack_from(record)
        payload = memoryview(record)[HEAD.size :]
        if kind == Kind.CALL:
            asked = _decode_call(payload)
            if asked.epoch == self._epoch:
                call = self._calls[seat, number] = RingOut(self, seat, number, asked)
                self._begin(call)
            return
        found = self._calls.get((seat, number))
        if found is None:
            return
        if kind == Kind.CREDIT:
            found.credit += _decode_credit(payload).n
            found.go.set()
        elif kind == Kind.CANCEL:
            self._cancel(found)
        elif kind == Kind.DATA:
            found.came += len(payload)
            if found.length <= self._most_body:
                found.parts.append(bytes(payload))
            self._begin(found)

    def _begin(self, call: RingOut) -> None:
        """Serve it once its body is complete."""
        if call.came >= call.length and call.task is None:
            fits = call.length <= self._most_body
            body = b"".join(call.parts) if fits else None
            call.parts.clear()
            call.task = self._loop.create_task(self._run(call, body))

    def _cancel(self, call: RingOut) -> None:
        call.ended = True
        self._calls.pop((call.seat, call.number), None)
        if call.task is not None:
            call.task.cancel()

    async def _run(self, call: RingOut, body: bytes | None) -> None:
        try:
            await self._serve(call.target, body, call)
        finally:
            self._calls.pop((call.seat, call.number), None)
            self.waiting.discard(call)
            if not call.ended:  # it failed, or we are leaving: its reader must not wait
                call.ended = True
                self._cut([call])

    def _cut(self, calls: list[RingOut]) -> None:
        """Tell readers that no more comes, now or when there is room."""
        self._uncut += [call for call in calls if not self.push(call, Kind.END, _CUT)]
