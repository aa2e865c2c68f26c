"""Values that must reach the store, however long control is away.

Invariants: one put at a time per key and the newest value last, so that a late first value never
overwrites the final one; a long value is given the time that it takes to write.  A value waits as
long as it is to be kept, and of all that wait there are no more than ``MAX_VALUES`` and
``MAX_BYTES``: then the oldest is given up, and counted.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from tpo_mp.ports import Metrics, Store
from tpo_mp.store.client import DEADLINE_S
from tpo_mp.store.questions import VALUE_BYTES

RETRY_S = 0.1
LONGEST_S = 5.0
MAX_BYTES = 2 * VALUE_BYTES
"""More than the longest value, or it and whatever waits beside it would push each other out."""
MAX_VALUES = 8192
SLOWEST_BYTES_S = 4 << 20
"""Of a disk under load: a value that was sent is not sent again while it is being written."""


class Puts:
    """The values of one shard on their way to one table."""

    def __init__(self, store: Store, table: str, metrics: Metrics) -> None:
        self._store = store
        text = "Values that the store did not take before they were given up."
        self._given_up = metrics.counter("tpo_store_values_lost_total", text, table=table)
        self._bytes = 0
        self._table = table
        self._newest: dict[str, tuple[bytes, float]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Put a value, again and again until control has taken it."""
        before = self._newest.get(key)
        self._newest[key] = (value, ttl_s)
        self._bytes += len(value) - (len(before[0]) if before else 0)
        if key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._surely(key))
        while len(self._newest) > MAX_VALUES or (self._bytes > MAX_BYTES and len(self._newest) > 1):
            self._forget(next(iter(self._newest)))
            self._given_up.inc()

    async def _surely(self, key: str) -> None:
        wait_s, began_at = RETRY_S, monotonic()
        while (value := self._newest.get(key)) is not None:
            wait_for_s = DEADLINE_S + len(value[0]) / SLOWEST_BYTES_S
            if await self._store.put(self._table, key, *value, wait_for_s):
                if self._newest.get(key) is value:
                    self._forget(key)
            elif monotonic() - began_at >= value[1]:
                self._forget(key)
                self._given_up.inc()
            else:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, LONGEST_S)
        del self._tasks[key]

    def _forget(self, key: str) -> None:
        value = self._newest.pop(key, None)
        if value is not None:
            self._bytes -= len(value[0])
