"""Calls whose answer is fetched later, by id, from any worker.

The id names the seat and epoch that accepted the call.  Whoever is asked looks here, asks that seat
over the mesh, or, when that occupant is gone, asks the store.

Invariants: at most ``MAX_KEPT`` records of ``MAX_KEPT_BYTES`` are kept here, finished ones also in
the store; a record's last word is put to the store before it may be forgotten here, and for its
bytes a record is forgotten only once it has been said; a call that control hands over after its
worker died keeps its id and is run once more.
Known weakness: between a worker's death and the rerun the store says "processing".
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from time import monotonic
from typing import Any

import msgspec
import orjson

from tpo_mp.dialects import native
from tpo_mp.dialects import openai_responses_background as background
from tpo_mp.errors import Shed, TpoError
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.ports import Metrics
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store.client import StoreClient
from tpo_mp.store.questions import RESULTS, VALUE_BYTES
from tpo_mp.types import Call

from .links import Links
from .owner import Owner
from .puts import Puts

MAX_KEPT = 16_384
MAX_KEPT_BYTES = 64 << 20
"""Of finished records, as JSON; what is still to be run is bounded by the places for calls."""
MAX_QUESTIONS = 4096
UNKNOWN_S = 5.0
"""What the store does not know may still be on its way, also while a killed worker's calls are
handed over; after this long there is no such call, however long the client would wait."""
_POLL_S = 0.1
_UNFINISHED = re.compile(rb'"(processing|pending)"')
_PIECE_ROOM = 64
_encode = msgspec.msgpack.Encoder().encode
_decode_query = msgspec.msgpack.Decoder(frames.ResultQuery).decode
_decode_answer = msgspec.msgpack.Decoder(frames.ResultAnswer).decode
_decode_rerun = msgspec.msgpack.Decoder(frames.RerunFrame).decode
_decode_meta = msgspec.msgpack.Decoder(frames.SlotMeta).decode


class Asyncs:
    """The asynchronous calls of one shard."""

    def __init__(
        self,
        *,
        owner: Owner,
        links: Links,
        plane: Plane,
        store: StoreClient,
        seat: int,
        epoch: int,
        ttl_s: float,
        metrics: Metrics,
    ) -> None:
        self._owner = owner
        self._links = links
        self._plane = plane
        self._store = store
        self._seat = seat
        self._epoch = epoch
        self._ttl_s = ttl_s
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._said: OrderedDict[str, int] = OrderedDict()
        self._said_bytes = 0
        self._puts = Puts(store, RESULTS, metrics)
        self._waiters: dict[str, asyncio.Event] = {}
        self._questions: dict[int, asyncio.Future[bytes | None]] = {}
        self._token = 0
        self._pieces: dict[str, list[frames.RerunFrame]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def accept(self, delivery: NativeDelivery, session_id: str) -> dict[str, Any]:
        """Run a call; its record is kept here and in the store.  Raises ``Shed``."""
        return self._start(delivery, session_id or None, attempts=0)

    def keep(self, call_id: str, record: dict[str, Any]) -> None:
        """Keep the last word on a call that was not accepted for later."""
        if call_id not in self._records:
            self._finished(call_id, record)

    def _start(
        self, delivery: NativeDelivery, session_id: str | None, attempts: int
    ) -> dict[str, Any]:
        call_id = delivery.call.id
        record = native.record(call_id, session_id, "processing")
        delivery.on_record = lambda done: self._finished(call_id, done)
        self._remember(call_id, record)
        try:
            self._owner.submit(delivery, SlotFlag.ASYNC, attempts)
        except TpoError:
            self._forget(call_id)
            raise
        if self._records.get(call_id) is record:
            # Should this worker die, whoever asks meanwhile learns that the call was accepted.
            self._puts.put(call_id, orjson.dumps(record), self._ttl_s)
        return record

    def _finished(self, call_id: str, record: dict[str, Any]) -> None:
        told = orjson.dumps(record)
        if len(told) > VALUE_BYTES:
            # Every worker says the same of it, so this one does not show what the store refused.
            large = Shed("the result is too large to be kept", reason="result_too_large")
            error = native.error_object(large, call_id)
            record = native.record(call_id, record.get("session_id"), "failed", error=error,
                                   model=str(record.get("model", "")))  # fmt: skip
            told = orjson.dumps(record)
        self._remember(call_id, record, len(told))
        self._puts.put(call_id, told, self._ttl_s)
        waiter = self._waiters.pop(call_id, None)
        if waiter is not None:
            waiter.set()

    def _remember(self, call_id: str, record: dict[str, Any], size: int = 0) -> None:
        """Keep a record, a finished one with its bytes as JSON, and forget what is too much."""
        self._records[call_id] = record
        self._said_bytes += size - self._said.pop(call_id, 0)
        if size:
            self._said[call_id] = size
        while len(self._records) > MAX_KEPT:
            self._forget(next(iter(self._records)))
        while self._said_bytes > MAX_KEPT_BYTES and len(self._said) > 1:
            self._forget(next(iter(self._said)))

    def _forget(self, call_id: str) -> None:
        self._records.pop(call_id, None)
        self._said_bytes -= self._said.pop(call_id, 0)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- reading ------------------------------------------------------------------------------

    async def result(self, call_id: str, wait_s: float) -> bytes | None:
        """The record as JSON, waiting up to ``wait_s`` for it to be final; raises ``Shed``."""
        place = CallIds.parse(call_id)
        if place is None:
            return None
        until = monotonic() + wait_s
        if call_id in self._records:
            return await self._local(call_id, wait_s)
        if place.seat < self._plane.seats and self._alive(place.seat, place.epoch):
            answer = await self._ask(place.seat, call_id, wait_s)
            if answer is not None:
                return answer
        unknown_until = None
        while True:
            kept = await self._store.lookup(RESULTS, call_id)
            found = None if kept is None else kept[0]
            if found is not None and not _UNFINISHED.search(found, 0, 400):
                return found
            if found is None and kept is not None and unknown_until is None:
                unknown_until = monotonic() + UNKNOWN_S
                until = min(until, unknown_until)
            left = until - monotonic()
            if left <= 0:
                if kept is None:  # "there is none" would be a guess
                    raise Shed("the store does not answer", reason="store_unavailable",
                               retry_after_s=1)  # fmt: skip
                return found
            if call_id in self._records:
                return await self._local(call_id, left)
            await asyncio.sleep(min(_POLL_S, left))

    def _alive(self, seat: int, epoch: int) -> bool:
        lines = self._plane.seat(seat)
        return seat != self._seat and lines.epoch == epoch and lines.pid != 0

    async def _local(self, call_id: str, wait_s: float) -> bytes | None:
        record = self._records.get(call_id)
        if record is not None and record["status"] == "processing" and wait_s > 0:
            waiter = self._waiters.setdefault(call_id, asyncio.Event())
            try:
                async with asyncio.timeout(wait_s):
                    await waiter.wait()
            except TimeoutError:
                pass
            record = self._records.get(call_id)
        return None if record is None else orjson.dumps(record)

    async def _ask(self, seat: int, call_id: str, wait_s: float) -> bytes | None:
        """Ask the accepting shard; ``None`` when it does not know or died."""
        if len(self._questions) >= MAX_QUESTIONS:
            return None
        self._token = token = self._token + 1 & 0xFFFFFFFF
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._questions[token] = future
        life = self._links.life_of(seat)
        query = _encode(frames.ResultQuery(token, call_id, wait_s))
        try:
            if not self._links.push(seat, HEAD.pack(Kind.RESULT_QUERY, 0), query):
                return None
            until = monotonic() + wait_s + 1.0
            while not future.done() and monotonic() < until and self._links.life_of(seat) == life:
                await asyncio.wait([future], timeout=_POLL_S)
            return future.result() if future.done() else None
        finally:
            del self._questions[token]

    # -- frames -------------------------------------------------------------------------------

    def take(self, source: int, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind == Kind.RESULT_QUERY:
            self._spawn(self._answer(source, _decode_query(payload)))
        elif kind == Kind.RESULT_ANSWER:
            answer = _decode_answer(payload)
            future = self._questions.get(answer.token)
            if future is not None and not future.done():
                future.set_result(answer.record)
        elif kind == Kind.RERUN:
            self._rerun(_decode_rerun(payload))
        else:
            return False
        return True

    async def _answer(self, source: int, query: frames.ResultQuery) -> None:
        record = await self._local(query.call_id, min(query.wait_s, 300.0))
        if record is not None and len(record) + _PIECE_ROOM > self._links.max_record:
            record = None  # too long for a ring: the asker reads it from the store
        self._links.push(
            source,
            HEAD.pack(Kind.RESULT_ANSWER, 0),
            _encode(frames.ResultAnswer(query.token, record)),
        )

    def _rerun(self, frame: frames.RerunFrame) -> None:
        pieces = self._pieces.setdefault(frame.call_id, [])
        pieces.append(frame)
        if frame.more:
            if len(self._pieces) > 64:
                self._pieces.pop(next(iter(self._pieces)))
            return
        del self._pieces[frame.call_id]
        meta = _decode_meta(pieces[0].meta)
        body = b"".join(p.body for p in pieces)
        call = Call(
            id=frame.call_id,
            model=meta.model,
            body=body,
            stream=meta.stream,
            started_at=monotonic(),
        )
        call.usage_wanted, call.unsaid = meta.stream, meta.unsaid
        call.tenant, call.session, call.affinity = (
            meta.tenant,
            meta.session or None,
            meta.session or None,
        )
        call.client_request_id = meta.client_request_id
        call.shard = self._owner.slot
        if meta.path == background.PATH:
            self._owner.backgrounds.rerun(call, frame.attempts)
            return
        kind = NativeStream if meta.stream else NativeDelivery
        delivery = kind(
            self._owner, AbsentClient("POST", meta.path), call, meta.session or None, detached=True
        )
        delivery.template = meta.path
        try:
            self._start(delivery, meta.session or None, attempts=frame.attempts)
            if isinstance(delivery, NativeStream):
                self._owner.feeds.open(delivery.feed)
        except TpoError as e:
            error = native.error_object(e, call.id)
            self._finished(
                call.id,
                native.record(call.id, meta.session, "failed", error=error, model=meta.model),
            )
