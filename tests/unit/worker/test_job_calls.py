"""Batch prompts on a shard: run once, told until heard, never a dead letter."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.support.fake_shards import SLOTS, FakeHost, FakeShard
from tests.unit.worker.test_asyncs import COMPLETION, Story, tell
from tpo_mp.errors import BackendFailure, RateLimited, Shed
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import Kind, frame
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store import job_questions as told
from tpo_mp.types import Priority, Reply
from tpo_mp.worker import job_calls

IDS = CallIds(4, 9)


def give(shard: FakeShard, call_id: str, body: bytes = b'{"q":1}', step: int = 1 << 16) -> None:
    """Control hands a prompt over, in pieces."""
    meta = msgspec.msgpack.encode(frames.SlotMeta("/api/v1/batch", "m", "", "", "", False))
    for at in range(0, len(body), step):
        piece = frames.RerunFrame(
            call_id, 0, b"" if at else meta, body[at : at + step], at + step < len(body)
        )
        shard.host.from_control(shard.seat, frame(Kind.JOB_CALL, 0, piece))
    shard.host.pump()


def ends(story: Story) -> list[told.EndPrompt]:
    """What control heard."""
    values = [v for (table, _), v in story.control.kept.items() if table == told.JOBS]
    return [msgspec.msgpack.decode(v, type=told.EndPrompt) for v in values]


def test_prompt_runs_at_low_priority_and_is_told(host: FakeHost) -> None:
    """Under its own id, in its slot of the registry; whole although it came in pieces."""

    async def story(story: Story) -> None:
        shard, call_id = host.shards[0], IDS.new()
        give(shard, call_id, b'{"q":"' + b"x" * 900 + b'"}', step=400)
        (call,) = shard.up.calls
        assert (call.id, call.priority) == (call_id, Priority.LOW)
        assert json.loads(call.body) == {"q": "x" * 900, "max_tokens": 256, "temperature": 0.7}
        assert call.unsaid == ("max_tokens", "temperature")
        host.registry.orphan_seat(0, shard.epoch)
        (orphan,) = host.registry.orphans()
        assert orphan.flags == SlotFlag.JOB
        assert shard.job_calls.busy
        shard.up.answer(Reply(200, COMPLETION))
        await story.turns()
        (end,) = ends(story)
        assert (end.call_id, end.status, end.later) == (call_id, "completed", False)
        assert json.loads(end.record)["result"] == "said"
        assert not shard.job_calls.busy

    tell(host, story)


def test_prompt_that_comes_twice_runs_once(host: FakeHost) -> None:
    """Another control sends what it cannot know to be here."""

    async def story(story: Story) -> None:
        shard, call_id = host.shards[0], IDS.new()
        give(shard, call_id)
        give(shard, call_id)
        assert len(shard.up.calls) == 1
        story.control.away = True
        shard.up.answer(Reply(200, COMPLETION))
        await story.turns()
        give(shard, call_id)
        assert len(shard.up.calls) == 1

    tell(host, story)


def test_answer_is_told_until_control_is_back(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has it."""
    monkeypatch.setattr(job_calls, "RETRY_S", 0.001)
    monkeypatch.setattr(told, "ASK_S", 0.01)

    async def story(story: Story) -> None:
        shard = host.shards[0]
        story.control.away = True
        give(shard, IDS.new())
        shard.up.answer(Reply(200, COMPLETION))
        lost: list[int] = []

        def told_thrice() -> bool:
            lost.extend(kind for _, kind, _ in host.to_control() if kind == Kind.STORE_PUT)
            return len(lost) >= 3

        await story.sees(told_thrice, "three tries to tell it")
        assert shard.job_calls.busy
        story.control.away = False
        await story.sees(lambda: not shard.job_calls.busy, "a shard that has nothing left to tell")
        assert len(ends(story)) == 1

    tell(host, story)


@pytest.mark.parametrize(
    ("error", "later"),
    [(Shed("full"), True), (RateLimited("slow down"), True), (BackendFailure("broke"), False)],
)
def test_only_what_could_not_be_done_now_goes_back(
    host: FakeHost, error: Exception, later: bool
) -> None:
    """A failure is a result; a queue that is full is none.  Neither leaves a letter."""

    async def story(story: Story) -> None:
        shard = host.shards[0]
        give(shard, IDS.new())
        shard.up.answer(error)
        shard.account.flush()
        await story.turns()
        (end,) = ends(story)
        assert (end.status, end.later) == ("failed", later)
        assert Kind.DEAD_LETTER not in story.control.other

    tell(host, story)


def test_shard_that_leaves_or_is_full_sends_prompts_back(host: FakeHost) -> None:
    """Before anything was registered."""

    async def story(story: Story) -> None:
        full, leaving = host.shards
        leaving.owner.draining = True
        give(leaving, IDS.new())
        for _ in range(SLOTS):
            full.ask()
        give(full, IDS.new())
        await story.turns()
        assert [end.later for end in ends(story)] == [True]  # the second put replaces the first
        assert story.control.puts
        assert not leaving.up.calls

    tell(host, story)


def test_cancelled_prompt_is_told_as_cancelled(host: FakeHost) -> None:
    """By control, when its job is cancelled, or by its id."""

    async def story(story: Story) -> None:
        shard, call_id = host.shards[0], IDS.new()
        give(shard, call_id)
        host.from_control(0, frame(Kind.CANCEL_CALL, 0, frames.CancelCall(0, call_id)))
        await story.turns()
        assert shard.up.cancelled == 1
        assert [end.status for end in ends(story)] == ["cancelled"]

    tell(host, story)
