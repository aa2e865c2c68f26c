"""The background responses of one shard: run detached, kept in the store, followed by number.

The store holds each response as it stands, so any worker answers a GET.  Events are with the shard
that runs the call: the one its id names, or, when that one died, the one it was handed to; whoever
wants them asks page by page.

Invariants: a response is in the store before its client hears its id; its final state is put last;
a finished call's events are kept for ``KEEP_S`` and forgotten earlier when room is needed.
Known weakness: a call that is run again after its worker's death starts its stream anew.
"""

from __future__ import annotations

import asyncio
from time import monotonic, time
from typing import Any

import msgspec
import orjson

from tpo_mp.dialects import openai_responses
from tpo_mp.dialects import openai_responses_background as dialect
from tpo_mp.errors import Rejected, Shed, TpoError
from tpo_mp.pipeline.background import BackgroundDelivery
from tpo_mp.pipeline.response_log import PAGE_BYTES, EventPage, LogSpace, ResponseLog
from tpo_mp.ports import Metrics
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds, mark_of
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Plane, SeatState
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store.client import StoreClient
from tpo_mp.store.questions import RESPONSES, response_key
from tpo_mp.types import Call, Dialect

from .links import Links
from .owner import Owner
from .puts import Puts

KEEP_S = 300.0
MAX_QUESTIONS = 4096
MAX_RECORD_BYTES = (8 << 20) - 4096
MAX_WAIT_S = 60.0
_FIRST_TRIES = 10
_POLL_S = 0.1
_PIECE_ROOM = 128
_SERVING = (SeatState.READY, SeatState.DRAINING)
_encode = msgspec.msgpack.Encoder().encode
_decode_query = msgspec.msgpack.Decoder(frames.EventsQuery).decode
_decode_answer = msgspec.msgpack.Decoder(frames.EventsAnswer).decode


class Backgrounds:
    """Runs and finds background responses."""

    def __init__(
        self,
        *,
        owner: Owner,
        links: Links,
        plane: Plane,
        store: StoreClient,
        seat: int,
        ttl_s: float,
        metrics: Metrics,
    ) -> None:
        self._owner = owner
        self._links = links
        self._plane = plane
        self._store = store
        self._puts = Puts(store, RESPONSES, metrics)
        self._seat = seat
        self._ttl_s = ttl_s
        self._space = LogSpace()
        self._logs: dict[str, ResponseLog] = {}
        self._questions: dict[int, asyncio.Queue[frames.EventsAnswer]] = {}
        self._token = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- running ------------------------------------------------------------------------------

    async def start(self, call: Call, asked: bytes) -> dict[str, Any]:
        """Run a call whose client ``asked`` for a background response; answers the first object.

        Raises ``Shed`` when the store does not take it, and whatever refuses the call at once.
        """
        response = dialect.accepted(asked, dialect.response_id(call.id), int(time()))
        made_of = _input(call)
        name = _key(call)
        try:
            await self._first_put(name, _record(response, made_of))
            delivery = self._run(call, response, made_of, attempts=0)
        except (TpoError, asyncio.CancelledError):  # refused, or the client left before it began
            self._puts.put(name, b"", 0)
            raise
        if isinstance(delivery.error, Rejected):
            self._puts.put(name, b"", 0)
            raise delivery.error
        return response

    async def _first_put(self, name: str, record: bytes) -> None:
        for _ in range(_FIRST_TRIES):
            if await self._store.put(RESPONSES, name, record, self._ttl_s):
                return
        raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)

    def rerun(self, call: Call, attempts: int) -> None:
        """Run an orphan of another worker again, under its own id."""
        call.dialect, call.stream, call.usage_wanted = Dialect.OPENAI_RESPONSES, True, True
        name = dialect.response_id(call.id)
        response = dialect.accepted(call.body, name, int(time()))
        made_of = _input(call)
        try:
            self._run(call, response, made_of, attempts)
        except TpoError as e:
            self._keep(call, dialect.broken(response, e), made_of)

    def _run(
        self, call: Call, response: dict[str, Any], made_of: bytes, attempts: int
    ) -> BackgroundDelivery:
        log = ResponseLog(self._space, attempts)
        delivery = BackgroundDelivery(
            self._owner, call, response, log, lambda shown: self._shown(call, shown, made_of)
        )
        self._logs[call.id] = log
        try:
            self._owner.submit(delivery, SlotFlag.ASYNC, attempts)
        except TpoError:
            del self._logs[call.id]
            raise
        return delivery

    def _shown(self, call: Call, response: dict[str, Any], made_of: bytes) -> None:
        """The response changed; ``made_of`` is its input."""
        if response["status"] not in dialect.UNFINISHED:
            asyncio.get_running_loop().call_later(KEEP_S, self._forget, call.id)
        self._keep(call, response, made_of)

    def _keep(self, call: Call, response: dict[str, Any], made_of: bytes) -> None:
        record = _record(response, made_of)
        if len(record) > MAX_RECORD_BYTES:
            large = Shed("the response is too large to be kept", reason="response_too_large")
            record = _record(dialect.broken(response | {"output": []}, large), b"[]")
        self._puts.put(_key(call), record, self._ttl_s)

    def _forget(self, call_id: str) -> None:
        log = self._logs.pop(call_id, None)
        if log is not None:
            self._space.forget(log)

    # -- following ----------------------------------------------------------------------------

    async def events(self, call_id: str, after: int, wait_s: float) -> EventPage | None:
        """The next page of a response's events; ``None`` when no shard has any."""
        log = self._logs.get(call_id)
        if log is not None:
            return await log.page(after, wait_s)
        place = CallIds.parse(call_id)
        if place is None:
            return None
        others = self._others()
        others.sort(key=lambda seat: seat != place.seat)
        for seat in others:
            page = await self._ask(seat, call_id, after, wait_s)
            if page is not None:
                return page
        return None

    def _others(self) -> list[int]:
        seats = range(self._plane.seats - 1)
        return [s for s in seats if s != self._seat and self._plane.seat(s).state in _SERVING]

    async def _ask(self, seat: int, call_id: str, after: int, wait_s: float) -> EventPage | None:
        if len(self._questions) >= MAX_QUESTIONS:
            return None
        self._token = token = self._token + 1 & 0xFFFFFFFF
        answers: asyncio.Queue[frames.EventsAnswer] = asyncio.Queue()
        self._questions[token] = answers
        life = self._links.life_of(seat)
        until = monotonic() + wait_s + 1.0
        query = _encode(frames.EventsQuery(token, call_id, after, wait_s))
        parts: list[bytes] = []
        try:
            if not self._links.push(seat, HEAD.pack(Kind.EVENTS_QUERY, 0), query):
                return None
            while monotonic() < until and self._links.life_of(seat) == life:
                try:
                    async with asyncio.timeout(_POLL_S):
                        answer = await answers.get()
                except TimeoutError:
                    continue
                parts.append(answer.data)
                if not answer.found:
                    return None
                if not answer.more:
                    data = b"".join(parts)
                    return EventPage(data, answer.last, answer.run, answer.ended, answer.gone)
            return None
        finally:
            del self._questions[token]

    # -- frames -------------------------------------------------------------------------------

    def take(self, source: int, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind == Kind.EVENTS_QUERY:
            self._spawn(self._answer(source, _decode_query(payload)))
        elif kind == Kind.EVENTS_ANSWER:
            answer = _decode_answer(payload)
            waiting = self._questions.get(answer.token)
            if waiting is not None:
                waiting.put_nowait(answer)
        else:
            return False
        return True

    async def _answer(self, source: int, query: frames.EventsQuery) -> None:
        log = self._logs.get(query.call_id)
        if log is None:
            await self._push(source, frames.EventsAnswer(query.token, False))
            return
        step = self._links.max_record - _PIECE_ROOM
        page = await log.page(query.after, min(query.wait_s, MAX_WAIT_S), min(step, PAGE_BYTES))
        data = page.data
        for at in range(0, max(1, len(data)), step):
            more = at + step < len(data)
            answer = frames.EventsAnswer(
                query.token, True, data[at : at + step], page.last, page.run, page.ended,
                page.gone, more,
            )  # fmt: skip
            if not await self._push(source, answer):
                return

    async def _push(self, seat: int, answer: frames.EventsAnswer) -> bool:
        """Send one answer, waiting a moment for room; who asked waits no longer than that."""
        record = HEAD.pack(Kind.EVENTS_ANSWER, 0) + _encode(answer)
        for _ in range(1000):
            if self._links.send(seat, record):
                return True
            await asyncio.sleep(0.001)
        return False

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(call: Call) -> str:
    return response_key(mark_of(call.id, call.tenant), dialect.response_id(call.id))


def _input(call: Call) -> bytes:
    return orjson.dumps(openai_responses.input_items(call.body))


def _record(response: dict[str, Any], made_of: bytes) -> bytes:
    """A response and its input, as they are kept."""
    return b'{"response":%b,"input":%b}' % (orjson.dumps(response), made_of)
