"""Calls fetched later: kept, found from any shard, put to the store, run again under their id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from tests.support.fake_shards import SLOTS, FakeHost, FakeShard
from tests.support.wait import until
from tpo_mp.errors import BackendFailure, Shed
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import Kind, frame
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store.questions import RESULTS
from tpo_mp.types import Reply
from tpo_mp.worker import asyncs

COMPLETION = json.dumps(
    {"model": "m", "choices": [{"message": {"content": "said"}, "finish_reason": "stop"}]}
).encode()


class Control:
    """Stands for control: keeps what it is given, answers when it is asked."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self.kept: dict[tuple[str, str], bytes] = {}
        self.puts: list[bytes] = []
        self.away = False
        self.other: list[int] = []

    def serve(self) -> None:
        """Answer everything that was asked since."""
        if self.away:
            return
        for seat, kind, payload in self._host.to_control():
            if kind == Kind.STORE_PUT:
                put = msgspec.msgpack.decode(payload, type=frames.StorePut)
                self.kept[put.table, put.key] = put.value
                self.puts.append(put.value)
                if not put.more:
                    self._answer(seat, frames.StoreAnswer(put.token, True, None))
            elif kind == Kind.STORE_GET:
                get = msgspec.msgpack.decode(payload, type=frames.StoreGet)
                self._answer(
                    seat, frames.StoreAnswer(get.token, True, self.kept.get((get.table, get.key)))
                )
            else:
                self.other.append(kind)

    def _answer(self, seat: int, answer: frames.StoreAnswer) -> None:
        self._host.from_control(seat, frame(Kind.STORE_ANSWER, 0, answer))


class Story:
    """A host whose rings are pumped while a test waits."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.control = Control(host)

    async def turns(self, n: int = 6) -> None:
        """Let tasks, rings and control take turns."""
        for _ in range(n):
            await asyncio.sleep(0)
            self._turn()

    def _turn(self) -> None:
        self.host.pump()
        self.control.serve()
        self.host.pump()

    async def sees(self, condition: Callable[[], object], what: str) -> None:
        """Take turns until a condition holds."""

        def holds() -> bool:
            self._turn()
            return bool(condition())

        await until(holds, what=what)

    async def until(self, task: asyncio.Task[Any]) -> Any:
        """Take turns until a task is done."""
        await self.sees(task.done, f"the end of {task}")
        return task.result()

    def accept(self, shard: FakeShard) -> tuple[str, dict[str, Any]]:
        """A client leaves a call here."""
        exchange = shard.exchange()
        call = shard.owner.new_call(
            exchange, model="m", body=b'{"q":1}', stream=False, affinity=None
        )
        delivery = NativeDelivery(shard.owner, exchange, call, "s", detached=True)
        return call.id, shard.owner.accept(delivery, "s")

    async def result(self, shard: FakeShard, call_id: str, wait_s: float = 0.0) -> Any:
        """Ask a shard for a record."""
        asked = asyncio.create_task(shard.owner.result(call_id, wait_s))
        found = await self.until(asked)
        return None if found is None else json.loads(found)


def tell(host: FakeHost, story: Callable[[Story], Awaitable[None]]) -> Story:
    """Run a story; whatever it left behind is cancelled."""
    told = Story(host)

    async def main() -> None:
        await story(told)
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine:
                task.cancel()
        await asyncio.sleep(0)

    asyncio.run(main())
    return told


def test_accepted_call_is_processing_then_completed(host: FakeHost) -> None:
    """Here, over the mesh, and in the store; under its own id."""

    async def story(told: Story) -> None:
        here, there = host.shards
        call_id, first = told.accept(here)
        assert (first["status"], first["request_id"], first["session_id"]) == (
            "processing", call_id, "s",
        )  # fmt: skip
        for shard in (here, there):
            assert (await told.result(shard, call_id))["status"] == "processing"
        here.up.answer(Reply(200, COMPLETION))
        for shard in (here, there):
            record = await told.result(shard, call_id)
            assert (record["status"], record["result"]) == ("completed", "said")
        await told.turns()
        kept = json.loads(told.control.kept[RESULTS, call_id])
        assert kept["status"] == "completed"
        assert [json.loads(p)["status"] for p in told.control.puts] == ["processing", "completed"]

    tell(host, story)


def test_call_that_ends_at_once_is_put_once(host: FakeHost) -> None:
    """Its first word is its last."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        shard.up.error = BackendFailure("broke")
        call_id, _ = told.accept(shard)
        record = await told.result(shard, call_id)
        assert (record["status"], record["error"]["message"]) == ("failed", "broke")
        await told.turns()
        assert len(told.control.puts) == 1

    tell(host, story)


@pytest.mark.parametrize("asked", [0, 1])
def test_waiting_for_a_result_ends_with_it(host: FakeHost, asked: int) -> None:
    """From either shard, as soon as it is there."""

    async def story(told: Story) -> None:
        call_id, _ = told.accept(host.shards[0])
        waiting = asyncio.create_task(host.shards[asked].owner.result(call_id, 60.0))
        await told.turns()
        assert not waiting.done()
        host.shards[0].up.answer(Reply(200, COMPLETION))
        found = await told.until(waiting)
        assert json.loads(found)["status"] == "completed"

    tell(host, story)


def test_waiting_ends_in_time(host: FakeHost) -> None:
    """With what there is by then."""

    async def story(told: Story) -> None:
        call_id, _ = told.accept(host.shards[0])
        assert (await told.result(host.shards[0], call_id, 0.01))["status"] == "processing"

    tell(host, story)


def test_dead_shards_results_come_from_the_store(host: FakeHost) -> None:
    """Its epoch is over: nobody asks its successor."""

    async def story(told: Story) -> None:
        call_id, _ = told.accept(host.shards[1])
        host.shards[1].up.answer(Reply(200, COMPLETION))
        await told.turns()
        host.die(1)
        host.shards[1].asyncs._records.clear()
        record = await told.result(host.shards[0], call_id)
        assert record["status"] == "completed"

    tell(host, story)


def test_shard_that_dies_while_asked_is_not_waited_for(host: FakeHost) -> None:
    """The store answers instead."""

    async def story(told: Story) -> None:
        call_id, _ = told.accept(host.shards[1])
        await told.turns()
        waiting = asyncio.create_task(host.shards[0].owner.result(call_id, 0.3))
        await told.turns()
        host.die(1)
        found = await told.until(waiting)
        assert json.loads(found)["status"] == "processing"
        assert host.shards[0].asyncs._questions == {}

    tell(host, story)


def test_unknown_and_foreign_ids_are_nobodys(host: FakeHost) -> None:
    """Garbage, other versions, seats this host does not have."""

    async def story(told: Story) -> None:
        asked = host.shards[0]
        for call_id in ("", "x", "00000000-0000-4000-8000-000000000000", "../../etc/passwd"):
            assert await told.result(asked, call_id) is None
        assert await told.result(asked, CallIds(200, 1).new()) is None
        assert await told.result(asked, CallIds(1, 1).new()) is None

    tell(host, story)


@pytest.mark.parametrize("living", [True, False])
def test_unknown_id_is_given_up_however_long_the_client_would_wait(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, living: bool
) -> None:
    """Well formed, of a shard that is there or gone, and never given out."""
    monkeypatch.setattr(asyncs, "UNKNOWN_S", 0.05)

    async def story(told: Story) -> None:
        call_id = CallIds(1, 1).new() if living else CallIds(200, 1).new()
        asked = asyncio.create_task(host.shards[0].owner.result(call_id, 300.0))
        assert await told.until(asked) is None

    tell(host, story)


def test_unknown_id_is_waited_for_while_the_store_is_away(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is not "there is none"."""
    monkeypatch.setattr(asyncs, "UNKNOWN_S", 0.0)

    async def story(told: Story) -> None:
        told.control.away = True
        call_id = CallIds(200, 1).new()
        waiting = asyncio.create_task(host.shards[0].owner.result(call_id, 0.5))
        with pytest.raises(Shed, match="does not answer"):
            await told.until(waiting)

    tell(host, story)


def test_record_too_long_for_a_ring_is_read_from_the_store(host: FakeHost) -> None:
    """The asker cannot get it over the mesh."""

    async def story(told: Story) -> None:
        here, there = host.shards
        call_id, _ = told.accept(here)
        text = "x" * (2 * here.links.max_record)
        here.up.answer(Reply(200, COMPLETION.replace(b"said", text.encode())))
        told.control.kept[RESULTS, call_id] = b'{"status":"completed","from":"store"}'
        told.control.away = True
        asked = asyncio.create_task(there.owner.result(call_id, 0.0))
        await asyncio.sleep(0)
        for _ in range(3):
            host.pump()
            await asyncio.sleep(0)
        told.control.away = False
        host.to_control()
        token = there.store._token
        there.store.on_answer(frames.StoreAnswer(token, True, told.control.kept[RESULTS, call_id]))
        assert json.loads(await told.until(asked))["from"] == "store"

    tell(host, story)


def test_last_word_is_put_until_control_takes_it(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control may be restarting."""
    monkeypatch.setattr(asyncs, "_POLL_S", 0.001)

    async def story(told: Story) -> None:
        shard = host.shards[0]
        told.control.away = True
        call_id, _ = told.accept(shard)
        shard.up.answer(Reply(200, COMPLETION))
        await told.turns()
        assert (RESULTS, call_id) not in told.control.kept
        host.to_control()
        told.control.away = False
        kept = told.control.kept
        await told.sees(
            lambda: b"completed" in kept.get((RESULTS, call_id), b""), "the last word at control"
        )

    tell(host, story)


def test_refused_call_leaves_no_record(host: FakeHost) -> None:
    """The client was told so."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        for _ in range(SLOTS):
            shard.ask()
        with pytest.raises(Shed):
            told.accept(shard)
        assert shard.asyncs._records == {}

    tell(host, story)


def test_records_are_bounded(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are the store's alone."""
    monkeypatch.setattr(asyncs, "MAX_KEPT", 3)

    async def story(told: Story) -> None:
        shard = host.shards[0]
        ids = []
        for _ in range(5):
            ids.append(told.accept(shard)[0])
            shard.up.answer(Reply(200, COMPLETION))
        await told.turns()
        assert list(shard.asyncs._records) == ids[2:]
        for call_id in ids:
            assert (await told.result(shard, call_id))["status"] == "completed"

    tell(host, story)


def test_bytes_of_records_are_bounded(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said is the store's alone, the oldest first; a call that still runs stays."""
    large = COMPLETION.replace(b"said", b"s" * 1000)
    monkeypatch.setattr(asyncs, "MAX_KEPT_BYTES", 3000)

    async def story(told: Story) -> None:
        shard = host.shards[0]
        running, _ = told.accept(shard)
        ids = []
        for _ in range(5):
            ids.append(told.accept(shard)[0])
            shard.up.answer(Reply(200, large))
        await told.turns()
        kept = shard.asyncs._records
        assert list(kept) == [running, *ids[3:]]
        assert sum(len(json.dumps(kept[name])) for name in ids[3:]) <= 3000 + 100
        for call_id in ids:
            assert (await told.result(shard, call_id))["result"] == "s" * 1000
        assert (await told.result(shard, running))["status"] == "processing"

    tell(host, story)


def rerun(shard: FakeShard, *pieces: bytes, attempts: int = 1) -> str:
    """Control hands a dead worker's call over."""
    call_id = CallIds(1, 1).new()
    session = shard.host.session_on(shard.seat, "t")
    meta = msgspec.msgpack.encode(frames.SlotMeta("/api/v1/infer", "m", "t", session, "r-1", False))
    for i, body in enumerate(pieces):
        more = i < len(pieces) - 1
        made = frames.RerunFrame(call_id, attempts, b"" if i else meta, body, more)
        shard.host.from_control(shard.seat, frame(Kind.RERUN, 0, made))
    return call_id


@pytest.mark.parametrize("pieces", [(b'{"q":1}',), (b'{"q"', b":", b"1}")])
def test_orphaned_call_runs_again_under_its_id(host: FakeHost, pieces: tuple[bytes, ...]) -> None:
    """Whole, with what its slot said, and one attempt older."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        call_id = rerun(shard, *pieces)
        await told.turns()
        (call,) = shard.up.calls
        assert (call.id, call.body, call.model) == (call_id, b'{"q":1}', "m")
        assert (call.tenant, call.client_request_id) == ("t", "r-1")
        assert call.session == host.session_on(0, "t")
        shard.up.answer(Reply(200, COMPLETION))
        await told.turns()
        assert b"completed" in told.control.kept[RESULTS, call_id]
        assert (await told.result(host.shards[1], call_id))["status"] == "completed"

    tell(host, story)


def test_orphan_is_marked_should_it_be_orphaned_again(host: FakeHost) -> None:
    """Its attempts are counted in the registry, so it is not run for ever."""

    async def story(told: Story) -> None:
        rerun(host.shards[0], b"{}", attempts=2)
        await told.turns()
        host.registry.orphan_seat(0, 1)
        (orphan,) = host.registry.orphans()
        assert orphan.attempts == 2
        assert orphan.flags & SlotFlag.ASYNC

    tell(host, story)


def test_orphan_nobody_has_room_for_fails_readably(host: FakeHost) -> None:
    """It is not lost in silence."""

    async def story(told: Story) -> None:
        shard = host.shards[0]
        for _ in range(SLOTS):
            shard.ask()
        call_id = rerun(shard, b"{}")
        await told.turns()
        record = await told.result(shard, call_id)
        assert record["status"] == "failed"
        assert record["error"]["code"] == "too_many_open_calls"

    tell(host, story)


def test_result_that_no_store_takes_is_the_same_failure_everywhere(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not put again and again, and its own worker tells what the others do."""
    monkeypatch.setattr(asyncs, "VALUE_BYTES", 250)
    large = COMPLETION.replace(b"said", b"s" * 300)

    async def story(told: Story) -> None:
        call_id, _ = told.accept(host.shards[0])
        host.shards[0].up.answer(Reply(200, large))
        for shard in host.shards:
            record = await told.result(shard, call_id, 60.0)
            assert (record["status"], record["error"]["code"]) == ("failed", "result_too_large")
        await told.turns()
        assert json.loads(told.control.kept[RESULTS, call_id]) == record

    tell(host, story)
