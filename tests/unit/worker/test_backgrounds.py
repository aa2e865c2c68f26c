"""Background responses of a shard: kept first, found from others, cancelled, run again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.dialects import REPLIES, body
from tests.support.fake_shards import FakeHost, FakeShard
from tests.unit.worker.test_asyncs import Story, tell
from tpo_mp.dialects.openai_responses_background import PATH, response_id
from tpo_mp.errors import Rejected, Shed, TpoError
from tpo_mp.pipeline.response_log import EventPage
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import Kind, frame
from tpo_mp.store.questions import RESPONSES
from tpo_mp.types import Dialect, Reply
from tpo_mp.worker import backgrounds

ASKED = b'{"model":"m","input":"hi","background":true}'
RUN = b'{"model":"m","input":"hi","stream":true}'


async def start(told: Story, shard: FakeShard) -> str:
    """A client leaves a response here; its call's id."""
    call = shard.owner.new_call(shard.exchange(), model="m", body=RUN, stream=True, affinity=None)
    call.dialect = Dialect.OPENAI_RESPONSES
    shown = await told.until(asyncio.create_task(shard.owner.run_background(call, ASKED)))
    assert shown["status"] == "queued"
    return call.id


def kept(told: Story, call_id: str) -> dict[str, Any]:
    """What the store holds of it."""
    record = json.loads(told.control.kept[RESPONSES, response_id(call_id)])
    assert record["input"][0]["role"] == "user"
    response: dict[str, Any] = record["response"]
    return response


def answer() -> Reply:
    """What the upstream of this test says: a whole chat completion."""
    return Reply(200, body(REPLIES["openai_chat"]))


async def events(told: Story, shard: FakeShard, call_id: str, after: int = -1) -> EventPage | None:
    """Ask a shard for a page."""
    asked = asyncio.create_task(shard.owner.background_events(call_id, after, 0.0))
    page: EventPage | None = await told.until(asked)
    return page


def test_response_is_kept_before_its_client_hears_of_it(host: FakeHost) -> None:
    """Then its end is."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        call_id = await start(told, shard)
        assert kept(told, call_id)["status"] == "queued"
        shard.up.answer(answer())
        await told.turns()
        shown = kept(told, call_id)
        assert shown["status"] == "completed"
        assert shown["output"][0]["content"][0]["text"] == "Hi there"

    tell(host, story)


def test_without_a_store_nothing_is_begun(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could fetch it."""
    monkeypatch.setattr(backgrounds, "_FIRST_TRIES", 2)

    async def story(told: Story) -> None:
        told.control.away = True
        with pytest.raises(Shed) as caught:
            await start(told, host.shards[0])
        assert caught.value.reason == "store_unavailable"
        assert not host.shards[0].up.calls

    tell(host, story)


def test_call_that_is_refused_at_once_leaves_nothing(host: FakeHost) -> None:
    """The refusal is the client's answer."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        shard.up.error = Rejected("no such thing", reason="odd")
        with pytest.raises(TpoError) as caught:
            await start(told, shard)
        assert caught.value.reason == "odd"
        await told.turns()
        assert set(told.control.kept.values()) == {b""}

    tell(host, story)


def test_events_and_cancelling_cross_the_mesh(host: FakeHost) -> None:
    """The shard the id names is asked; one nobody has is known nowhere."""

    async def story(told: Story) -> None:
        here, there = host.shards[:2]
        call_id = await start(told, here)
        for shard in (here, there):
            assert await events(told, shard, call_id) == EventPage(b"", -1)
        assert await told.until(asyncio.create_task(there.owner.cancel(call_id)))
        await told.turns()
        assert here.up.cancelled == 1
        assert kept(told, call_id)["status"] == "cancelled"
        pages = [await events(told, shard, call_id) for shard in (here, there)]
        assert pages[0] == pages[1]
        assert pages[0] is not None
        assert pages[0].ended
        assert b"cancelled_on_request" in pages[0].data
        for unknown in (CallIds(0, 1).new(), CallIds(9, 9).new(), "nonsense"):
            assert await events(told, there, unknown) is None
        assert not there.backgrounds._questions

    tell(host, story)


def test_long_event_crosses_the_mesh_in_pieces(host: FakeHost) -> None:
    """Longer than any ring record, byte for byte."""

    async def story(told: Story) -> None:
        here, there = host.shards[:2]
        call_id = await start(told, here)
        log = here.backgrounds._logs[call_id]
        event = bytes(range(256)) * 4096
        log.append(event)
        page = await events(told, there, call_id)
        assert page == EventPage(event, 0)

    tell(host, story)


def test_finished_events_are_forgotten_in_time(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response itself stays in the store."""
    monkeypatch.setattr(backgrounds, "KEEP_S", 0.0)

    async def story(told: Story) -> None:
        shard = host.shards[0]
        call_id = await start(told, shard)
        assert await shard.owner.cancel(call_id)
        await told.turns()
        await told.sees(lambda: not shard.backgrounds._logs, "forgotten events")
        assert await events(told, shard, call_id) is None
        assert kept(told, call_id)["status"] == "cancelled"

    tell(host, story)


def test_response_too_large_to_keep_is_a_failure(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that is never finished."""
    monkeypatch.setattr(backgrounds, "MAX_RECORD_BYTES", 700)

    async def story(told: Story) -> None:
        shard = host.shards[0]
        call_id = await start(told, shard)
        shard.up.answer(answer())
        await told.turns()
        record = json.loads(told.control.kept[RESPONSES, response_id(call_id)])
        assert record["response"]["status"] == "failed"
        assert "too large" in record["response"]["error"]["message"]

    tell(host, story)


@pytest.mark.parametrize("full", [False, True])
def test_orphan_is_run_again_under_its_id(host: FakeHost, full: bool) -> None:
    """By the shard control chose; one that cannot take it says that it failed."""

    async def story(told: Story) -> None:
        shard = host.shards[1]
        if full:
            for _ in range(1000):
                try:
                    shard.ask()
                except TpoError:
                    break
        call_id = CallIds(7, 1).new()
        meta = frames.SlotMeta(PATH, "m", "", "", "", True)
        encoded = frames._encode(meta)
        host.from_control(
            1, frame(Kind.RERUN, 0, frames.RerunFrame(call_id, 1, encoded, RUN, False))
        )
        await told.turns()
        if full:
            assert kept(told, call_id)["status"] == "failed"
            return
        assert shard.up.calls[-1].stream
        page = await events(told, host.shards[0], call_id)
        assert page is not None
        assert page.run == 1
        shard.up.answer(answer())
        await told.turns()
        assert kept(told, call_id)["status"] == "completed"

    tell(host, story)
