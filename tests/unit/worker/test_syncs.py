"""Durability ``always``, seen from a worker: calls wait for the disk, but not for ever."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, cast

from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply
from tpo_mp.worker.syncs import MAX_ASKED, Syncs

REPLY = cast("Reply", object())


class Counted:
    """Metrics of one counter."""

    def __init__(self) -> None:
        self.total = 0

    def counter(self, *_: Any, **__: Any) -> Counted:
        """Itself."""
        return self

    def inc(self, n: int = 1) -> None:
        """Count."""
        self.total += n


class Worker:
    """One worker's waiting calls, and the records it sent to control."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[int]]] = []
        self.late = Counted()
        self.served: list[int] = []
        self.ends: list[tuple[Any, BaseException | None]] = []
        metrics: Any = self.late
        self.syncs = Syncs(self._send, asyncio.get_running_loop(), metrics)
        self._serve = self.syncs.first(self._core)

    def _send(self, record: bytes) -> bool:
        kind, number = HEAD.unpack_from(record)
        assert kind == Kind.SYNC
        slots = array("I")
        slots.frombytes(record[HEAD.size :])
        self.sent.append((number, list(slots)))
        return True

    def _core(self, call: Call) -> Awaitable[Reply]:
        self.served.append(call.slot)
        out: Promise[Reply] = Promise()
        out.resolve(REPLY)
        return out

    def call(self, slot: int) -> Callable[[], object] | None:
        """Run a call that is registered in a slot; answers what cancels it."""
        call = Call(id="x", model="m", body=b"", stream=False, started_at=0.0)
        call.slot = slot
        return run(self._serve(call), lambda *end: self.ends.append(end))


def play(test: Callable[[Worker], Awaitable[None]]) -> None:
    """Run a test with a fresh worker."""

    async def main() -> None:
        await test(Worker())

    asyncio.run(main())


def test_calls_of_one_turn_ask_together_and_wait() -> None:
    """One record names them all; none is served before the answer."""

    async def test(worker: Worker) -> None:
        for slot in (3, 1, 2):
            worker.call(slot)
        await asyncio.sleep(0)
        worker.call(9)
        await asyncio.sleep(0)
        assert worker.sent == [(1, [3, 1, 2]), (2, [9])]
        assert worker.served == []
        worker.syncs.done(1)
        assert worker.served == [3, 1, 2]
        worker.syncs.done(2)
        worker.syncs.done(2)
        assert worker.served == [3, 1, 2, 9]
        assert worker.ends == [(REPLY, None)] * 4
        assert worker.late.total == 0

    play(test)


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    """After 50 ms the calls go on, and are counted; a late answer changes nothing."""

    async def test(worker: Worker) -> None:
        began = asyncio.get_running_loop().time()
        worker.call(1)
        worker.call(2)
        while len(worker.ends) < 2:
            await asyncio.sleep(0.005)
        assert asyncio.get_running_loop().time() - began >= 0.045
        assert (worker.served, worker.late.total) == ([1, 2], 2)
        worker.syncs.done(1)
        assert worker.served == [1, 2]

    play(test)


def test_a_call_that_is_cancelled_meanwhile_is_not_served() -> None:
    """Its client left; the others are not disturbed."""

    async def test(worker: Worker) -> None:
        cancel = worker.call(1)
        worker.call(2)
        await asyncio.sleep(0)
        assert cancel is not None
        cancel()
        assert isinstance(worker.ends[0][1], asyncio.CancelledError)
        worker.syncs.done(1)
        assert worker.served == [2]

    play(test)


def test_a_burst_asks_in_several_records() -> None:
    """Each fits a ring."""

    async def test(worker: Worker) -> None:
        total = 2 * MAX_ASKED + 5
        for slot in range(total):
            worker.call(slot)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [len(slots) for _, slots in worker.sent] == [MAX_ASKED, MAX_ASKED, 5]
        assert [slot for _, slots in worker.sent for slot in slots] == list(range(total))
        for number, _ in worker.sent:
            worker.syncs.done(number)
        assert len(worker.served) == total

    play(test)
