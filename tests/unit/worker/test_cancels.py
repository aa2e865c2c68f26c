"""Cancelling by id: here, on another shard, and where no shard knows the call."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.fake_shards import FakeHost
from tests.unit.worker.test_asyncs import Story, tell
from tpo_mp.errors import Shed
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.plane import SeatState
from tpo_mp.types import Terminal
from tpo_mp.worker import cancels


def test_waiting_client_is_told_and_the_upstream_let_go(host: FakeHost) -> None:
    """From the shard that owns the call and from the other; the record stays to be asked for."""

    async def story(told: Story) -> None:
        here = host.shards[0]
        for asked in host.shards:
            delivery = here.ask()
            cancelled = here.up.cancelled
            ended = asyncio.create_task(asked.owner.cancel(delivery.call.id))
            assert await told.until(ended) is True
            assert here.up.cancelled == cancelled + 1
            assert delivery.terminal is Terminal.CANCELLED
            assert delivery.exchange.status == 499  # type: ignore[attr-defined]
            body = json.loads(delivery.exchange.answer)  # type: ignore[attr-defined]
            assert body["error"]["code"] == "cancelled_on_request"
            for shard in host.shards:
                record = await told.result(shard, delivery.call.id)
                assert record["status"] == "cancelled"

    tell(host, story)


def test_accepted_call_ends_as_cancelled_record(host: FakeHost) -> None:
    """Its own record says so, once, and a second cancel finds nothing open."""

    async def story(told: Story) -> None:
        here, there = host.shards
        call_id, _ = told.accept(here)
        assert await told.until(asyncio.create_task(there.owner.cancel(call_id))) is True
        record = await told.result(there, call_id)
        assert (record["status"], record["session_id"]) == ("cancelled", "s")
        assert record["error"]["code"] == "cancelled_on_request"
        assert await told.until(asyncio.create_task(there.owner.cancel(call_id))) is False
        await told.turns()
        kept = json.loads(told.control.kept["results", call_id])
        assert kept["status"] == "cancelled"

    tell(host, story)


def test_call_that_lives_under_an_old_id_is_found(host: FakeHost) -> None:
    """Its id names a shard that died; another runs it."""

    async def story(told: Story) -> None:
        here, there = host.shards
        call = there.owner.new_call(
            there.exchange(), model="m", body=b"{}", stream=False, affinity=None
        )
        call.id = CallIds(here.seat, 7).new()
        there.owner.submit(Delivery(there.owner, there.exchange(), call))
        assert await told.until(asyncio.create_task(here.owner.cancel(call.id))) is True

    tell(host, story)


def test_finished_and_unknown_calls_are_not_open(host: FakeHost) -> None:
    """Every shard was asked, and each said no."""

    async def story(told: Story) -> None:
        here, there = host.shards
        for call_id in (CallIds(0, 1).new(), CallIds(1, 1).new(), CallIds(99, 1).new()):
            for shard in (here, there):
                assert await told.until(asyncio.create_task(shard.owner.cancel(call_id))) is False

    tell(host, story)


def test_silent_shard_is_an_error_and_a_dead_one_is_not(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not answer may have the call; who died has it no more."""
    monkeypatch.setattr(cancels, "ANSWER_S", 0.05)

    async def story(_: Story) -> None:
        here, there = host.shards
        with pytest.raises(Shed) as refused:
            await here.owner.cancel(CallIds(there.seat, 1).new())
        assert refused.value.reason == "shard_silent"
        monkeypatch.setattr(cancels, "ANSWER_S", 30.0)
        asked = asyncio.create_task(here.owner.cancel(CallIds(there.seat, 1).new()))
        await asyncio.sleep(0)
        host.die(there.seat, back=False)
        assert host.plane.seat(there.seat).state == SeatState.BOOTING
        assert await asyncio.wait_for(asked, 10) is False

    tell(host, story)
