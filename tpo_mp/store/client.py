"""The worker's side of the store: questions to control over a ring, with a deadline.

Nothing here blocks or raises: ``get`` answers ``None`` and ``put`` answers ``False`` when the ring
is full, control is away, too many questions are open, or 50 ms have passed.  ``lookup`` tells
"there is none" from "no answer".

Values longer than a ring record travel in pieces (``more``); each piece renews the deadline.

Invariants: at most ``MAX_OPEN`` questions are open; a late answer finds nobody and is dropped; a
question is counted exactly once as answered or unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

from tpo_mp.ports import Metrics

DEADLINE_S = 0.05
MAX_OPEN = 1024
MAX_VALUE = 40 << 20
_RETRY_S = 0.001

GetRecord: TypeAlias = Callable[[int, str, str], bytes]
"""Builds a question's ring record of (token, table, key)."""
PutRecord: TypeAlias = Callable[[int, str, str, bytes, float, bool, int], bytes]
"""Builds a ring record of (token, table, key, piece, ttl_s, more, at)."""


class AnswerView(Protocol):
    """What control answers: ``ok`` and the value, or one piece of it."""

    @property
    def token(self) -> int: ...
    @property
    def ok(self) -> bool: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def more(self) -> bool: ...


class _Open:
    __slots__ = ("due_at", "future", "parts", "size", "wait_s")

    def __init__(self, future: asyncio.Future[tuple[bool, bytes | None]], wait_s: float) -> None:
        self.future = future
        self.wait_s = wait_s
        self.due_at = 0.0
        self.parts: list[bytes] = []
        self.size = 0


class StoreClient:
    """Implements ``ports.Store``."""

    def __init__(
        self,
        send: Callable[[bytes], bool],
        clock: Callable[[], float],
        get_record: GetRecord,
        put_record: PutRecord,
        *,
        piece_bytes: int = 4096,
        metrics: Metrics | None = None,
    ) -> None:
        """``send`` puts one record on the ring to control and answers False when it is full.

        ``clock`` is the loop's; a value longer than ``piece_bytes`` is sent in pieces, so a piece
        and 512 bytes must fit a record.  The owner hands every answer to ``on_answer``.
        """
        self._send = send
        self._clock = clock
        self._get_record = get_record
        self._put_record = put_record
        self._piece_bytes = piece_bytes
        self._open: dict[int, _Open] = {}
        self._token = 0
        self._answered = self._unavailable = None
        if metrics is not None:
            text = "Questions to the store."
            self._answered = metrics.counter("tpo_store_questions_total", text, result="answered")
            self._unavailable = metrics.counter(
                "tpo_store_questions_total", text, result="unavailable"
            )

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None:
        """The value, or ``None`` when there is none or the store is unavailable."""
        answer = await self.lookup(table, key, wait_s=wait_s)
        return None if answer is None else answer[0]

    async def lookup(
        self, table: str, key: str, *, wait_s: float = DEADLINE_S
    ) -> tuple[bytes | None] | None:
        """A 1-tuple of what the store has, or ``None`` when it did not answer in time."""
        ok, value = await self._ask(lambda token: (self._get_record(token, table, key),), wait_s)
        return (value,) if ok else None

    async def put(
        self, table: str, key: str, value: bytes, ttl_s: float, wait_s: float = 0.05
    ) -> bool:
        """Whether the store has taken the value; ``ttl_s`` of 0 forgets the key."""
        return await self.post(table, key, value, ttl_s=ttl_s, wait_s=wait_s) is not None

    async def post(
        self, table: str, key: str, value: bytes, *, ttl_s: float = 0.0, wait_s: float = DEADLINE_S
    ) -> tuple[bytes | None] | None:
        """A 1-tuple of what control says to a value, or ``None`` when it did not take it."""

        def pieces(token: int) -> Iterator[bytes]:
            step = self._piece_bytes
            for at in range(0, max(1, len(value)), step):
                more = at + step < len(value)
                yield self._put_record(token, table, key, value[at : at + step], ttl_s, more, at)

        ok, said = await self._ask(pieces, wait_s)
        return (said,) if ok else None

    def on_answer(self, answer: AnswerView) -> None:
        """Take an answer, or a piece of one, off the ring."""
        waiting = self._open.get(answer.token)
        if waiting is None or waiting.future.done():
            return
        value = answer.value
        if not answer.more and not waiting.parts:
            waiting.future.set_result((answer.ok, value))
            return
        waiting.parts.append(value or b"")
        waiting.size += len(value or b"")
        waiting.due_at = self._clock() + waiting.wait_s
        if not answer.ok or waiting.size > MAX_VALUE:
            waiting.future.set_result((False, None))
        elif not answer.more:
            waiting.future.set_result((True, b"".join(waiting.parts)))

    @property
    def open_questions(self) -> int:
        """Questions without an answer yet."""
        return len(self._open)

    async def _ask(
        self, build: Callable[[int], Iterable[bytes]], wait_s: float
    ) -> tuple[bool, bytes | None]:
        if len(self._open) >= MAX_OPEN:
            return self._count(False), None
        self._token = token = self._token + 1 & 0xFFFFFFFF or 1
        loop = asyncio.get_running_loop()
        waiting = _Open(loop.create_future(), wait_s)
        waiting.due_at = self._clock() + wait_s
        self._open[token] = waiting
        try:
            for record in build(token):
                if not await self._push(record, waiting):
                    return self._count(False), None
            timer = loop.call_later(wait_s, self._expire, token)
            try:
                ok, value = await waiting.future
            finally:
                timer.cancel()
        finally:
            del self._open[token]
        return self._count(ok), value

    async def _push(self, record: bytes, waiting: _Open) -> bool:
        """Send one record, waiting for room no longer than the deadline."""
        while not self._send(record):
            if self._clock() >= waiting.due_at or waiting.future.done():
                return False
            await asyncio.sleep(_RETRY_S)
        waiting.due_at = self._clock() + waiting.wait_s
        return True

    def _expire(self, token: int) -> None:
        waiting = self._open.get(token)
        if waiting is None or waiting.future.done():
            return
        left = waiting.due_at - self._clock()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._expire, token)
        else:
            waiting.future.set_result((False, None))

    def _count(self, ok: bool) -> bool:
        counter = self._answered if ok else self._unavailable
        if counter is not None:
            counter.inc()
        return ok
