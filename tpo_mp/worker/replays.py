"""Dead letters that control gave this shard to ask again.

How it went is told to control; should the word be lost, control takes the letter for unanswered
when this process dies or the lease is over.

Invariants: nothing runs here twice at a time; a letter that cannot be asked is refused for good.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tpo_mp.errors import Rejected, TpoError
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.replay import Replayer
from tpo_mp.shm.frames import Kind, ReplayFrame
from tpo_mp.store.client import StoreClient
from tpo_mp.store.questions import FAILED, REFUSED, REPLAYS
from tpo_mp.types import Priority

TRIES: Final = 20
_decode = msgspec.msgpack.Decoder(ReplayFrame).decode


class ReplayCalls:
    """The scheduled replays of one shard."""

    def __init__(self, replayer: Replayer, store: StoreClient) -> None:
        self._replayer = replayer
        self._store = store
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        """Whether one is being asked."""
        return bool(self._tasks)

    def take(self, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind != Kind.REPLAY:
            return False
        call_id = _decode(payload).call_id
        if call_id not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._ask(call_id))
            self._tasks[call_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(call_id, None))
        return True

    async def _ask(self, call_id: str) -> None:
        client = AbsentClient("POST", "/api/v1/dlq/{id}/replay")
        try:
            await self._replayer.ask_again(client, call_id, priority=Priority.LOW)
        except Rejected as error:
            await self._tell(call_id, FAILED if error.retryable else REFUSED)
        except TpoError:
            await self._tell(call_id, FAILED)

    async def _tell(self, call_id: str, how: bytes) -> None:
        for _ in range(TRIES):  # control may be starting again
            if await self._store.put(REPLAYS, call_id, how, 0):
                return
