"""Asking a dead letter again by hand: not when another worker did since it was looked at."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.errors import Rejected
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.replay import Replayer
from tpo_mp.ports import Cells
from tpo_mp.store.questions import ReplayWord


class Store:
    """A gateway whose store has a letter that somebody else is done with in between."""

    def __init__(self, then: str) -> None:
        self.statuses = ["open", then]
        self.words: list[str] = []

    async def ask_store(self, _table: str, call_id: str, _wait_s: float) -> tuple[bytes, float]:
        """The letter as it stands."""
        letter = {
            "request_id": call_id, "status": self.statuses.pop(0), "model": "m", "tenant": "",
            "path": "/v1/chat/completions", "truncated": False, "payload": {}, "encoding": "",
        }  # fmt: skip
        return json.dumps(letter).encode(), 0.0

    async def tell_replay(self, _call_id: str, word: ReplayWord, _wait_s: float) -> bytes:
        """Control does not let a letter that is done with be asked."""
        self.words.append(word.how)
        return b""


@pytest.mark.parametrize("then", ["replayed", "dropped"])
def test_what_somebody_else_was_done_with_meanwhile_is_not_asked(then: str) -> None:
    """It is as if that had been seen at first, and the lease is free again."""
    store = Store(then)
    world = FakeWorld()
    replayer = Replayer(store, world.env)  # type: ignore[arg-type]
    client: Any = AbsentClient("POST", "/")

    async def story() -> Any:
        return await replayer.ask_again(client, "x")

    if then == "replayed":
        assert asyncio.run(story()) is None
    else:
        with pytest.raises(Rejected):
            asyncio.run(story())
    assert (store.words, store.statuses) == (["begun"], [])
    free: list[bool] = []

    def look(cells: Cells) -> Cells:
        free.append(cells[0] == 0.0)
        return cells

    world.env.ledger.update("dlq:x", look)
    assert free == [True]
