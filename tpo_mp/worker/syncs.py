"""Durability ``always``: a call waits until control has its copy on disk, before it goes upstream.

The calls of one turn of the loop ask together, with one record that names their slots; one answer
lets them go on.

A call whose copy the disk refused (it is full, or broken) is refused with 507: who chose ``always``
wants no call that a loss of power would lose.

Invariants: no call waits longer than ``WAIT_S``; one that was not synced by then, because the disk
is slow, goes on and is counted.  With any other durability nothing here is called.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable

from tpo_mp.errors import Shed
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Metrics
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply

WAIT_S = 0.05
MAX_ASKED = 512
RETRY_AFTER_S = 5.0
"""As long as control leaves a disk alone that refused."""


class Syncs:
    """The calls of one shard that wait for a disk."""

    def __init__(
        self, send: Callable[[bytes], bool], loop: asyncio.AbstractEventLoop, metrics: Metrics
    ) -> None:
        """``send`` takes a record to control."""
        self._send = send
        self._loop = loop
        self._number = 0
        self._slots = array("I")
        self._next: list[Promise[None]] = []
        self._asked: dict[int, list[Promise[None]]] = {}
        self._late = metrics.counter(
            "tpo_unsynced_calls_total", "Calls sent on before their copy was on disk."
        )

    def first(self, core: Callable[[Call], Awaitable[Reply]]) -> Callable[[Call], Awaitable[Reply]]:
        """Wrap ``core`` so that it runs once the call is synced."""

        async def synced(call: Call) -> Reply:
            await self._wait(call.slot)
            return await core(call)

        return synced

    def done(self, number: int) -> None:
        """Control has synced what was asked under this number."""
        for promise in self._asked.pop(number, ()):
            promise.resolve(None)

    def refused(self, number: int) -> None:
        """The disk took none of what was asked under this number."""
        for promise in self._asked.pop(number, ()):
            promise.reject(
                Shed(
                    "this gateway must have calls on its disk, and the disk takes none now",
                    reason="not_on_disk",
                    status=507,
                    retry_after_s=RETRY_AFTER_S,
                )
            )

    def _wait(self, slot: int) -> Promise[None]:
        promise: Promise[None] = Promise()
        if not self._next:
            self._loop.call_soon(self._ask)
        elif len(self._next) >= MAX_ASKED:
            self._ask()  # what is booked already asks for the rest
        self._slots.append(slot)
        self._next.append(promise)
        return promise

    def _ask(self) -> None:
        promises, self._next = self._next, []
        slots, self._slots = self._slots, array("I")
        if promises:
            self._number = number = self._number + 1 & 0xFFFFFFFF
            self._asked[number] = promises
            self._loop.call_later(WAIT_S, self._go_on, number)
            self._send(HEAD.pack(Kind.SYNC, number) + slots.tobytes())

    def _go_on(self, number: int) -> None:
        self._late.inc(sum(not promise.done for promise in self._asked.get(number, ())))
        self.done(number)
