"""Sweeps against what is still on its way: no call whose record arrived is taken for lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import structlog

from tpo_mp.control import harvest as module
from tpo_mp.control.harvest import Harvest
from tpo_mp.shm.callid import CallIds, to_bytes
from tpo_mp.shm.frames import SlotMeta
from tpo_mp.shm.plane import Command, Plane, SeatState
from tpo_mp.shm.registry import Registry
from tpo_mp.store.letters import Letter


class Shelf:
    """The store, as a sweep sees it: empty, and keeping the letters it is given."""

    def __init__(self) -> None:
        self.letters = self
        self.kept: list[str] = []

    def recent_records(self) -> list[bytes]:
        """No earlier run."""
        return []

    def stored(self, _call_id: str) -> bool:
        """Nothing was."""
        return False

    def add_letters(self, letters: list[Letter]) -> int:
        """Keep their names."""
        self.kept += [letter.call_id for letter in letters]
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
    registry.close()
