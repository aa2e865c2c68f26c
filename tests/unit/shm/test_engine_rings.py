"""Places of engines and their rings: who is found where, and what is left of the dead."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tpo_mp.errors import Fault
from tpo_mp.shm.engine_rings import NO_DOCK, EngineRings, docks_for, name_word

SEATS, DOCKS = 3, 2


@pytest.fixture
def rings() -> Iterator[EngineRings]:
    """The rings of three workers and two engines."""
    made = EngineRings.create(SEATS, DOCKS)
    yield made
    made.close()


def test_engine_is_found_while_it_serves_and_under_its_name_only(rings: EngineRings) -> None:
    """Not before it said so, nor after it was reaped."""
    word = name_word("one")
    assert rings.dock_of(word) == NO_DOCK
    dock, epoch = rings.occupy_dock("one")
    assert rings.dock_of(word) == NO_DOCK
    rings.serve(dock, epoch)
    assert rings.dock_of(word) == dock
    assert rings.serves(dock)
    assert rings.dock_of(name_word("other")) == NO_DOCK
    rings.serve(dock, 0)
    assert rings.dock_of(word) == NO_DOCK
    rings.serve(dock, epoch)
    rings.vacate_dock(dock)
    assert rings.dock_of(word) == NO_DOCK
    assert not rings.serves(dock)
    assert rings.epoch_of(dock) != epoch


def test_there_is_a_place_for_each_and_then_none(rings: EngineRings) -> None:
    """One that was given back is taken again, by another epoch."""
    one, two = (rings.occupy_dock(name) for name in ("one", "two"))
    assert {one[0], two[0]} == {0, 1}
    assert rings.occupy_dock("three") == (NO_DOCK, 0)
    rings.vacate_dock(one[0])
    dock, epoch = rings.occupy_dock("three")
    assert dock == one[0]
    assert epoch > one[1]
    assert [docks_for(n) for n in (0, 1, 99)] == [1, 2, 16]


def test_no_ring_touches_another(rings: EngineRings) -> None:
    """A record comes out where it was meant for, and nowhere else."""
    ends = []
    for seat, dock in itertools.product(range(SEATS), range(DOCKS)):
        ends.append((rings.to_engine(seat, dock, 1), rings.from_seat(seat, dock)))
        ends.append((rings.to_seat(seat, dock, 1), rings.from_engine(seat, dock)))
    for number, (writer, _) in enumerate(ends):
        assert writer.push(b"%d" % number * 100)
    assert [reader.drain() for _, reader in ends] == [[b"%d" % n * 100] for n in range(len(ends))]
    with pytest.raises(ValueError, match="no rings"):
        rings.to_engine(SEATS, 0, 1)


def test_successors_get_nothing_of_the_dead(rings: EngineRings) -> None:
    """What a dead engine or worker left unread, or was sent, is gone."""
    dock, epoch = rings.occupy_dock("one")
    for seat in (0, 1):
        rings.occupy_seat(seat, 1)
    asks = [rings.to_engine(seat, dock, 1) for seat in (0, 1)]
    hears = [rings.from_engine(seat, dock) for seat in (0, 1)]
    says = [rings.to_seat(seat, dock, epoch) for seat in (0, 1)]
    for writer in (*asks, *says):
        assert writer.push(b"old")
    rings.vacate_dock(dock)
    dock, epoch = rings.occupy_dock("one")
    heard = [rings.from_seat(seat, dock) for seat in (0, 1)]
    says = [rings.to_seat(seat, dock, epoch) for seat in (0, 1)]
    for writer in (*asks, *says):
        assert writer.push(b"new")
    assert [reader.drain() for reader in (*heard, *hears)] == [[b"new"]] * 4

    for writer in (*asks, *says):
        assert writer.push(b"old")
    rings.vacate_seat(0, 2)
    assert [rings.life_of(seat) for seat in (0, 1)] == [2, 1]
    rings.occupy_seat(0, 3)
    assert rings.to_engine(0, dock, 3).push(b"new")
    assert heard[0].drain() == [b"new"]
    assert heard[1].drain() == [b"old"]
    assert rings.from_engine(0, dock).drain() == []
    assert hears[1].drain() == [b"old"]


def test_other_rings_are_refused(rings: EngineRings) -> None:
    """Of another size or with another head."""
    EngineRings.attach(rings.fd, SEATS, DOCKS)
    with pytest.raises(Fault):
        EngineRings.attach(rings.fd, SEATS, DOCKS + 1)
    rings.segment.words[1] += 1
    with pytest.raises(Fault):
        EngineRings.attach(rings.fd, SEATS, DOCKS)
