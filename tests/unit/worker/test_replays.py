"""Scheduled replays on a shard: each attempt once, and never given up for control's sake."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.support.wait import until
from tpo_mp.errors import Busy, Rejected, Shed
from tpo_mp.pipeline.replay import SILENT, UNDER_WAY
from tpo_mp.shm.frames import Kind, ReplayFrame
from tpo_mp.types import Priority
from tpo_mp.worker import replays
from tpo_mp.worker.replays import ReplayCalls


class FakeReplayer:
    """Fails as the test says, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked: list[tuple[str, int]] = []

    async def ask_again(self, _client: Any, call_id: str, *, attempt: int, priority: Any) -> None:
        """Note it."""
        assert priority is Priority.LOW
        self.asked.append((call_id, attempt))
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


def give(calls: ReplayCalls, call_id: str, attempt: int) -> bool:
    """Control gives a letter out."""
    sent = msgspec.msgpack.encode(ReplayFrame(call_id, attempt))
    return calls.take(Kind.REPLAY, memoryview(sent))


async def _ended(calls: ReplayCalls) -> None:
    await until(lambda: not calls.busy, 5, "all attempts ended")


def test_an_attempt_runs_once_and_the_next_beside_it() -> None:
    """However often control gives it out; other frames are not ours."""
    replayer = FakeReplayer()

    async def story() -> None:
        calls = ReplayCalls(replayer)  # type: ignore[arg-type]
        assert not calls.take(Kind.CANCEL, memoryview(b""))
        assert all(give(calls, *one) for one in (("x", 1), ("x", 1), ("x", 2), ("y", 1)))
        assert calls.busy
        await _ended(calls)

    asyncio.run(story())
    assert sorted(replayer.asked) == [("x", 1), ("x", 2), ("y", 1)]


def test_control_is_waited_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its silence, and a last attempt that it has not heard the end of, pass; an error does not."""
    monkeypatch.setattr(replays, "RETRY_S", 0.0)
    waits = [Shed("", reason=SILENT), Busy("", reason=UNDER_WAY)] * 30
    replayer = FakeReplayer(*waits, Rejected("", reason="letter_dropped"))

    async def story() -> None:
        calls = ReplayCalls(replayer)  # type: ignore[arg-type]
        give(calls, "x", 3)
        await _ended(calls)

    asyncio.run(story())
    assert replayer.asked == [("x", 3)] * 61
