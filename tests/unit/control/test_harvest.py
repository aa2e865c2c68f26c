"""Sweeps against what is still on its way: no call whose record arrived is taken for lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, cast

import msgspec
import pytest
import structlog

from tpo_mp.control import harvest as module
from tpo_mp.control.harvest import Harvest, Suspect
from tpo_mp.pipeline.poison import digest_of_body
from tpo_mp.shm import registry as registry_module
from tpo_mp.shm.callid import CallIds, to_bytes
from tpo_mp.shm.frames import RecordFrame, SlotMeta
from tpo_mp.shm.plane import Command, Plane, SeatState
from tpo_mp.shm.registry import Registry, SlotFlag, SlotState
from tpo_mp.store.letters import Letter


class Shelf:
    """The store, as a sweep sees it: empty, and keeping the letters it is given."""

    def __init__(self) -> None:
        self.letters = self
        self.kept: list[str] = []
        self.taken: list[Letter] = []
        self.there: set[str] = set()
        self.records: list[RecordFrame] = []

    def record(self, batch: bytes) -> None:
        """Keep what it tells."""
        self.records += msgspec.msgpack.decode(batch, type=list[RecordFrame])

    def recent_records(self) -> list[bytes]:
        """No earlier run."""
        return []

    def stored(self, call_id: str) -> bool:
        """Nothing was, but what the test says."""
        return call_id in self.there

    def add_letters(self, letters: list[Letter]) -> int:
        """Keep their names."""
        self.kept += [letter.call_id for letter in letters]
        self.taken += letters
        return len(letters)


class LateKeeper:
    """The store's thread, which works when the test says so."""

    full = False

    def __init__(self) -> None:
        self.shelf = Shelf()
        self._jobs: list[tuple[Callable[[Any], Any], Callable[[Any], None]]] = []

    def submit(self, work: Any, done: Any = lambda _: None, **_: Any) -> None:
        """Queue a job."""
        self._jobs.append((work, done))

    def run(self) -> None:
        """Do what is queued, and what that queues."""
        while self._jobs:
            work, done = self._jobs.pop(0)
            done(work(self.shelf))


class NoReruns:
    """Nothing is run again."""

    def __len__(self) -> int:
        return 0

    def lost(self) -> list[Any]:
        """None is."""
        return []

    def underway(self) -> frozenset[str]:
        """None is."""
        return frozenset()

    def possible(self) -> bool:
        """It is not."""
        return False


@pytest.fixture
def plane() -> Iterator[Plane]:
    """Two workers, both ready."""
    made = Plane.create(2, 5, bytes(16))
    for seat in (0, 1):
        made.seat(seat).occupy(seat, Command.RUN)
        made.seat(seat).state = SeatState.READY
    yield made
    made.close()


def test_a_record_that_is_read_after_the_sweep_began_counts(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep was asked for before the worker ended a call, pushed its record and died."""
    registry = Registry.create_file(tmp_path / "registry", 5, 64)
    writer, ids, keeper = registry.writer(0, 1), CallIds(0, 1), LateKeeper()
    finished, lost = ids.new(), ids.new()
    ring: list[bytes] = []
    monkeypatch.setattr(module, "record_ids", lambda batches: {b.decode() for b in batches})

    def read_rings() -> bool:
        for batch in ring:
            harvest.note_records(0, batch)
        ring.clear()
        return True

    harvest = Harvest(
        plane, registry, cast("Any", keeper), cast("Any", NoReruns()), structlog.get_logger(),
        read_rings,
    )  # fmt: skip
    harvest.tick()
    meta = msgspec.msgpack.encode(SlotMeta("/v1/chat/completions", "m", "", "", "", False))
    for call_id in (finished, lost):
        writer.open(to_bytes(call_id), meta, b"{}", 0)
    ring.append(finished.encode())
    registry.orphan_seat(0, 1)
    keeper.run()
    assert keeper.shelf.kept == [lost]
    harvest.tick()  # the letter is not on disk yet: the call is found again
    keeper.run()
    (record,) = keeper.shelf.records
    assert (record.call_id, record.terminal, record.error) == (lost, "crashed", "worker_lost")
    assert (record.path, record.model, record.bytes_in) == ("/v1/chat/completions", "m", 2)
    registry.close()


def test_a_call_whose_letter_was_its_worker_s_last_word_gets_a_record(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letter left its worker, its record did not: one record, and no second letter."""
    registry = Registry.create_file(tmp_path / "registry", 5, 64)
    writer, ids, keeper = registry.writer(0, 1), CallIds(0, 1), LateKeeper()
    monkeypatch.setattr(module, "record_ids", lambda _batches: set())
    harvest = Harvest(
        plane, registry, cast("Any", keeper), cast("Any", NoReruns()), structlog.get_logger(),
        lambda: True,
    )  # fmt: skip
    call_id = ids.new()
    meta = msgspec.msgpack.encode(SlotMeta("/v1/chat/completions", "m", "", "", "", False))
    writer.open(to_bytes(call_id), meta, b"{}", 0)
    registry.orphan_seat(0, 1)
    keeper.shelf.there = {call_id}
    for _ in range(3):
        harvest.tick()
        keeper.run()
    assert [record.call_id for record in keeper.shelf.records] == [call_id]
    assert keeper.shelf.kept == []
    assert not list(registry.orphans())
    registry.close()


def test_an_answered_call_whose_record_was_lost_gets_one_and_no_letter(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and its slot back; nobody suspects its body, or runs it again."""
    registry = Registry.create_file(tmp_path / "registry", 5, 64)
    writer, ids, keeper = registry.writer(0, 1), CallIds(0, 1), LateKeeper()
    told, booked, lost = ids.new(), ids.new(), ids.new()
    monkeypatch.setattr(module, "record_ids", lambda batches: {b.decode() for b in batches})
    suspects: list[Suspect] = []
    harvest = Harvest(
        plane, registry, cast("Any", keeper), cast("Any", NoReruns()), structlog.get_logger(),
        lambda: True, suspect=suspects.extend,
    )  # fmt: skip
    meta = msgspec.msgpack.encode(SlotMeta("/v1/prompt", "m", "", "t", "", False))
    for call_id, flags in ((told, SlotFlag(0)), (booked, SlotFlag(0)), (lost, SlotFlag.ASYNC)):
        slot = writer.open(to_bytes(call_id), meta, b"{}", flags)
        writer.set_state(slot, SlotState.SETTLED)
    writer.close(0)
    harvest.note_records(0, booked.encode())
    registry.orphan_seat(0, 1)
    noted: list[str] = []
    monkeypatch.setattr(module, "note_failure", lambda _shelf, _orphan, a: noted.append(a.call_id))
    for _ in range(3):
        harvest.tick()
        keeper.run()
    (record,) = keeper.shelf.records
    assert (record.call_id, record.terminal, record.error) == (lost, "crashed", "record_lost")
    assert (record.status, record.prompt_tokens, record.path) == (0, -1, "/v1/prompt")
    assert noted == [lost], "its result may never have left the worker"
    assert keeper.shelf.kept == []
    assert suspects == []
    assert not list(registry.orphans())
    registry.close()


def test_a_letter_says_when_its_worker_died(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it is written; letters of one death keep the order in which calls began."""
    registry = Registry.create_file(tmp_path / "registry", 5, 64)
    writer, ids, keeper = registry.writer(0, 1), CallIds(0, 1), LateKeeper()
    now, began_at = 1000.0, 2e9
    monkeypatch.setattr(module.time, "time", lambda: began_at + now - 1000.0)
    harvest = Harvest(
        plane, registry, cast("Any", keeper), cast("Any", NoReruns()), structlog.get_logger(),
        lambda: True, lambda: now,
    )  # fmt: skip
    plane.seat(0).pid = 4711
    harvest.look()
    meta = msgspec.msgpack.encode(SlotMeta("/v1/chat/completions", "m", "", "", "", False))
    calls = [ids.new() for _ in range(4)]
    for n, call_id in zip((2, 0, 3, 1), calls, strict=True):
        monkeypatch.setattr(registry_module, "time_ns", lambda n=n: int((began_at + n) * 1e9))
        writer.open(to_bytes(call_id), meta, b"{}", 0)
    now += 5
    plane.seat(0).vacate()
    harvest.look()
    registry.orphan_seat(0, 1)
    for _ in range(2):
        now += 3
        harvest.tick()
        keeper.run()
    letters = keeper.shelf.taken[:4]
    assert [letter.call_id for letter in letters] == [calls[n] for n in (1, 3, 0, 2)]
    assert {letter.dropped_at for letter in letters} == {began_at + 5}
    assert {record.duration_s for record in keeper.shelf.records} == {5.0, 4.0, 3.0, 2.0}
    registry.close()


def test_bodies_that_workers_died_with_are_told_once(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With when they began and when the death was seen; not of calls that had ended."""
    registry = Registry.create_file(tmp_path / "registry", 5, 64)
    writer, ids, keeper = registry.writer(0, 1), CallIds(0, 1), LateKeeper()
    finished, failed, lost = ids.new(), ids.new(), ids.new()
    monkeypatch.setattr(module, "record_ids", lambda batches: {b.decode() for b in batches})
    monkeypatch.setattr(keeper.shelf, "stored", lambda call_id: call_id in keeper.shelf.kept)
    told: list[Suspect] = []
    now = monotonic()
    harvest = Harvest(
        plane, registry, cast("Any", keeper), cast("Any", NoReruns()), structlog.get_logger(),
        lambda: True, lambda: now, told.extend,
    )  # fmt: skip
    plane.seat(0).pid = 4711
    harvest.look()
    meta = msgspec.msgpack.encode(SlotMeta("/v1/chat/completions", "m", "", "", "", False))
    for call_id, body in ((finished, b"finished"), (lost, b"lost")):
        writer.open(to_bytes(call_id), meta, body, 0)
    owing = writer.open(to_bytes(failed), meta, b"failed", 0)
    writer.set_state(owing, SlotState.OWING)
    harvest.note_records(0, finished.encode())
    now += 5
    plane.seat(0).vacate()
    harvest.look()
    died = now
    registry.orphan_seat(0, 1)
    for _ in range(3):
        now += 3
        harvest.tick()
        keeper.run()
    (suspect,) = told
    assert sorted(keeper.shelf.kept) == sorted((failed, lost))
    assert suspect.digest == digest_of_body(b"lost")
    assert suspect.died_by == died
    assert suspect.began_at <= now
    registry.close()
