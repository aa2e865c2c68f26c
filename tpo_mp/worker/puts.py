"""Values that must reach the store, however long control is away.

Invariants: one put at a time per key and the newest value last, so that a late first value never
overwrites the final one; after ``TRIES`` refusals a value is given up.
"""

from __future__ import annotations

import asyncio

from tpo_mp.ports import Store

RETRY_S = 0.1
TRIES = 100


class Puts:
    """The values of one shard on their way to one table."""

    def __init__(self, store: Store, table: str) -> None:
        self._store = store
        self._table = table
        self._newest: dict[str, tuple[bytes, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Put a value, again and again until control has taken it."""
        underway = key in self._newest
        self._newest[key] = (value, ttl_s)
        if not underway:
            task = asyncio.get_running_loop().create_task(self._surely(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _surely(self, key: str) -> None:
        try:
            for _ in range(TRIES):
                value = self._newest[key]
                if not await self._store.put(self._table, key, *value):
                    await asyncio.sleep(RETRY_S)
                elif self._newest[key] is value:
                    return
        finally:
            del self._newest[key]
