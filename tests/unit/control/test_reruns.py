"""Handing orphaned calls to a living worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tpo_mp.control import reruns as module
from tpo_mp.control.reruns import Reruns
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds, to_bytes, to_text
from tpo_mp.shm.plane import Command, Plane, SeatState
from tpo_mp.shm.registry import Orphan, Registry, SlotFlag

SEATS = 5


class Post:
    """Keeps what is sent until the test lets it go."""

    max_record = 8192

    def __init__(self) -> None:
        self.parcels: list[tuple[int, list[bytes], Callable[[bool], None]]] = []

    def send(
        self, seat: int, records: list[bytes], done: Callable[[bool], None] | None = None
    ) -> None:
        """Take a parcel."""
        assert done is not None
        self.parcels.append((seat, records, done))


class House:
    """A dead worker in seat 0, a ready one in seat 1."""

    def __init__(self, folder: Path) -> None:
        self.plane = Plane.create(2, SEATS, bytes(16))
        self.registry = Registry.create_file(folder / "registry", SEATS, 64)
        for seat in (0, 1):
            self.plane.seat(seat).occupy(seat, Command.RUN)
        self.plane.seat(1).state = SeatState.READY
        self.writer = self.registry.writer(0, 1)
        self.ids = CallIds(0, 1)
        self.post = Post()
        self.now = 0.0
        self.reruns = Reruns(self.plane, self.registry, self.post, lambda: self.now)

    def orphan(self, body: bytes = b"{}") -> Orphan:
        """Open a call and kill its worker."""
        call_id = self.ids.new()
        self.writer.open(to_bytes(call_id), b"meta", body, SlotFlag.ASYNC)
        self.registry.orphan_seat(0, 1)
        return next(o for o in self.registry.orphans() if to_text(o.call_id) == call_id)

    def orphans(self) -> int:
        """How many are left."""
        return len(list(self.registry.orphans()))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A small host."""
    made = House(tmp_path)
    yield made
    made.plane.close()
    made.registry.close()


def test_the_slot_is_kept_until_the_last_piece_is_pushed(house: House) -> None:
    """Only then is the call the other worker's."""
    orphan = house.orphan(b"x" * 20_000)
    house.reruns.start(orphan)
    seat, records, done = house.post.parcels[0]
    pieces = [msgspec.msgpack.decode(frames.payload(r), type=frames.RerunFrame) for r in records]
    assert seat == 1
    assert b"".join(p.body for p in pieces) == b"x" * 20_000
    assert [p.more for p in pieces] == [True] * (len(pieces) - 1) + [False]
    assert [p.meta for p in pieces] == [b"meta"] + [b""] * (len(pieces) - 1)
    assert house.reruns.underway() == {to_text(orphan.call_id)}
    assert house.orphans() == 1
    done(True)
    assert (house.orphans(), house.reruns.underway(), len(house.reruns)) == (0, frozenset(), 1)
    house.reruns.finished(to_text(orphan.call_id))
    assert len(house.reruns) == 0


def test_a_worker_that_dies_before_it_has_all_changes_nothing(house: House) -> None:
    """The orphan is still there, to be handed to the next."""
    orphan = house.orphan()
    house.reruns.start(orphan)
    house.post.parcels[0][2](False)
    assert (house.orphans(), len(house.reruns)) == (1, 0)
    house.reruns.start(orphan)
    assert len(house.post.parcels) == 2


def test_a_call_is_never_handed_over_twice(house: House) -> None:
    """A second start while it is known does nothing."""
    orphan = house.orphan()
    house.reruns.start(orphan)
    house.reruns.start(orphan)
    house.post.parcels[0][2](True)
    house.reruns.start(orphan)
    assert len(house.post.parcels) == 1


def test_a_second_death_is_noticed_after_a_grace_period(house: House) -> None:
    """Its record, or its own orphan, may still arrive in between."""
    orphan = house.orphan()
    house.reruns.start(orphan)
    house.post.parcels[0][2](True)
    assert house.reruns.lost() == []
    house.plane.seat(1).vacate()
    assert house.reruns.lost() == []
    house.now += module.GRACE_S
    assert house.reruns.lost() == [orphan]
    assert house.reruns.lost() == []


def test_only_ready_workers_with_a_slot_are_chosen(house: House) -> None:
    """A spare, a booting or a draining worker takes nothing; ready ones take turns."""
    house.plane.seat(2).occupy(-1, Command.PARK)
    house.plane.seat(2).state = SeatState.READY
    assert house.reruns.possible()
    house.plane.seat(1).state = SeatState.DRAINING
    assert not house.reruns.possible()
    house.plane.seat(1).state = SeatState.READY
    house.plane.seat(3).occupy(0, Command.RUN)
    house.plane.seat(3).state = SeatState.READY
    for _ in range(4):
        house.reruns.start(house.orphan())
    assert {seat for seat, _, _ in house.post.parcels} == {1, 3}


def test_what_is_remembered_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the caps calls become letters instead."""
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    house.reruns.start(house.orphan(b"x" * 2000))
    assert not house.reruns.possible()
