"""When open calls are copied, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.control.copied import copies_in
from tpo_mp.control.copies import EVERY_S, Copies
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.store.open_copy import DRAFT
from tpo_mp.store.shelf import Shelf, ShelfOptions


class House:
    """A host whose store thread works when the test says so."""

    max_record = 8192

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.plane = Plane.create(1, 4, bytes(16))
        self.plane.seat(0).epoch = 1
        self.registry = Registry.create_file(folder / "registry", 4, 64)
        self.writer = self.registry.writer(0, 1)
        self.shelf = Shelf(folder / "store", ShelfOptions())
        self.jobs: list[tuple[Callable[[Shelf], Any], Callable[[Any], None] | None]] = []
        self.sent: list[tuple[int, tuple[int, int]]] = []
        self.path = folder / copy_name(self.registry.run)
        keeper: Any = self
        self.copies = Copies(
            self.plane, self.registry, keeper, self, folder, clock=lambda: self.now
        )

    def submit(
        self, work: Callable[[Shelf], Any], done: Callable[[Any], None] | None = None
    ) -> None:
        """Be the keeper."""
        self.jobs.append((work, done))

    def send(
        self, seat: int, records: Sequence[bytes], done: Callable[[bool], None] | None = None
    ) -> None:
        """Be the mail."""
        del done
        self.sent += [(seat, HEAD.unpack_from(record)) for record in records]

    def work(self) -> int:
        """Do what waits; answers how many jobs that were."""
        jobs, self.jobs = self.jobs, []
        for work, done in jobs:
            result = work(self.shelf)
            if done is not None:
                done(result)
        return len(jobs)

    def open(self, n: int) -> int:
        """Accept a call."""
        return self.writer.open(n.to_bytes(16, "big"), b"meta", b"body", 0)

    def close(self) -> None:
        """Let everything go."""
        self.shelf.close()
        self.registry.close()
        self.plane.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A fresh one."""
    made = House(tmp_path)
    yield made
    made.close()


def test_a_copy_is_made_once_a_second(house: House) -> None:
    """Never twice at the same time, however slow the disk is."""
    house.copies.configure("everysec", 1 << 20)
    house.open(1)
    done = 0
    for _ in range(12):
        house.copies.tick()
        done += house.work()
        house.now += EVERY_S / 4
    assert done == 3
    assert house.path.exists()
    for _ in range(12):
        house.copies.tick()
        house.now += EVERY_S / 4
    assert len(house.jobs) == 1


def test_without_durability_there_is_no_copy(house: House) -> None:
    """And one that is there goes when the level changes."""
    house.copies.configure("everysec", 1 << 20)
    house.open(1)
    house.copies.tick()
    house.work()
    house.copies.configure("no", 1 << 20)
    house.work()
    assert not house.path.exists()
    house.now += 2 * EVERY_S
    house.copies.tick()
    assert house.jobs == []


def test_who_asks_is_answered_after_the_sync(house: House) -> None:
    """And what is asked during a sync shares the next one."""
    house.copies.configure("always", 1 << 20)
    house.copies.ask(0, 7, (house.open(1),))
    assert house.sent == []
    house.copies.ask(0, 8, (house.open(2),))
    house.copies.ask(0, 9, (house.open(3), 1 << 20))
    assert len(house.jobs) == 1
    house.work()
    assert house.sent == [(0, (Kind.SYNCED, 7))]
    assert len(house.jobs) == 1
    house.work()
    assert [number for _, (_, number) in house.sent] == [7, 8, 9]
    assert house.copies.copyist.calls == 3
    assert house.jobs == []


def test_a_sync_that_the_disk_refused_is_answered_as_such(house: House) -> None:
    """No call may pass for one that is on disk."""
    house.copies.configure("always", 1 << 20)
    house.work()
    house.path.mkdir()
    (house.path / "in the way").touch()
    house.copies.ask(0, 7, (house.open(1),))
    house.work()
    assert house.sent == [(0, (Kind.UNSYNCED, 7))]
    assert house.copies.copyist.errors == 1


def test_a_dead_worker_is_not_answered(house: House) -> None:
    """Its successor has asked nothing."""
    house.copies.configure("always", 1 << 20)
    house.copies.ask(0, 7, (house.open(1),))
    house.plane.seat(0).epoch += 1
    house.work()
    assert house.sent == []


def test_a_worker_with_an_older_configuration_does_not_wait(house: House) -> None:
    """Control reads a new configuration before its workers do, or after."""
    house.copies.configure("everysec", 1 << 20)
    house.copies.ask(0, 7, (house.open(1),))
    assert house.sent == [(0, (Kind.SYNCED, 7))]


def test_a_clean_end_leaves_no_copy(house: House) -> None:
    """And nothing is copied after it."""
    house.copies.configure("everysec", 1 << 20)
    slot = house.open(1)
    house.copies.tick()
    house.work()
    house.writer.close(slot)
    house.copies.end()
    house.now += 2 * EVERY_S
    house.copies.tick()
    house.work()
    assert not house.path.exists()


def test_copies_of_earlier_runs_are_found(tmp_path: Path) -> None:
    """Not this run's own, not what merely looks like one; drafts are thrown away."""
    kept = {copy_name(1), copy_name(1) + DRAFT, copy_name(2), "registry.synced-" + 16 * "z"}
    for name in kept | {copy_name(3) + DRAFT}:
        (tmp_path / name).touch()
    assert copies_in(tmp_path, own=1) == {2: tmp_path / copy_name(2)}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_copy_holds_no_bodies_where_none_may_be_kept(house: House) -> None:
    """What an earlier copy held is gone at once."""
    house.open(1)
    house.copies.configure("everysec", 1 << 20)
    house.copies.tick()
    house.work()
    assert b"body" in house.path.read_bytes()
    house.copies.configure("everysec", 1 << 20, bodies=False)
    house.work()
    assert not house.path.exists()
    house.now += 2
    house.copies.tick()
    house.work()
    assert b"meta" in house.path.read_bytes()
    assert b"body" not in house.path.read_bytes()
    assert house.copies.copyist.cut == 0
