"""Dead letters that control gave this shard to ask again.

How it went is told to control until it has written that down; should this process die before,
control takes the letter for unanswered.

Invariants: no attempt runs here twice at a time; a letter that cannot be asked is refused for good.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tpo_mp.errors import TpoError
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.replay import SILENT, UNDER_WAY, Replayer
from tpo_mp.shm.frames import Kind, ReplayFrame
from tpo_mp.types import Priority

RETRY_S: Final = 0.1
_decode = msgspec.msgpack.Decoder(ReplayFrame).decode


class ReplayCalls:
    """The scheduled replays of one shard."""

    def __init__(self, replayer: Replayer) -> None:
        self._replayer = replayer
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        """Whether one is being asked, or control still has to hear of it."""
        return bool(self._tasks)

    def take(self, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind != Kind.REPLAY:
            return False
        given = _decode(payload)
        key = (given.call_id, given.attempt)
        if key not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._ask(given))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return True

    async def _ask(self, given: ReplayFrame) -> None:
        client = AbsentClient("POST", "/api/v1/dlq/{id}/replay")
        while True:
            try:
                await self._replayer.ask_again(
                    client, given.call_id, attempt=given.attempt, priority=Priority.LOW
                )
            except TpoError as error:
                # Control may be starting again, or not have heard yet how the last attempt ended.
                if error.reason in (SILENT, UNDER_WAY):
                    await asyncio.sleep(RETRY_S)
                    continue
            return
