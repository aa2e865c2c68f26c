"""Control words: every word in its place, each with one writer, the map never torn."""

from __future__ import annotations

import os
import random

import pytest

from tpo_mp.errors import Fault
from tpo_mp.shm import plane as plane_module
from tpo_mp.shm.plane import (
    ACCEPTOR_VERSION,
    BUCKETS,
    CONFIG_EPOCH,
    HOST_STATE,
    MAP_VERSION,
    NO_SEAT,
    NO_SLOT,
    RESTARTS,
    Command,
    HostState,
    Plane,
    SeatState,
)

KEY = bytes(range(16))
SUPERVISOR_WORDS = ("epoch", "command", "pid", "slot")
OCCUPANT_WORDS = (
    "beat",
    "state",
    "config_ack",
    "config_nack",
    "open_calls",
    "loop_lag_us",
    "now_us",
)


@pytest.fixture
def plane() -> Plane:
    """Two workers, five seats."""
    return Plane.create(2, 5, KEY)


def test_header_is_what_it_was_created_with(plane: Plane) -> None:
    """Another process reads workers, seats, key and birth from the memory alone."""
    other = Plane.attach(plane.fd)
    assert (other.workers, other.seats, other.install_key) == (2, 5, KEY)
    assert other.started_at_wall_ms == plane.started_at_wall_ms > 1_600_000_000_000
    assert Plane.size(5) == plane.segment.size


def test_new_plane_is_empty(plane: Plane) -> None:
    """Nobody sits, nobody serves, every epoch is "never used"."""
    assert plane.host_state == HostState.STARTING
    assert {plane.slot_seat(s) for s in range(2)} == {NO_SEAT}
    assert {plane.slot_acceptor(s) for s in range(2)} == {NO_SEAT}
    version, cells = plane.read_map()
    assert version == 0
    assert set(cells) == {NO_SEAT}
    for number in range(5):
        seat = plane.seat(number)
        assert (seat.epoch, seat.slot, seat.state, seat.beat) == (0, NO_SLOT, SeatState.EMPTY, 0)


def test_no_two_words_overlap(plane: Plane) -> None:
    """Give every word of the plane its own value; all of them are still there afterwards."""
    plane.host_state, plane.config_epoch, plane.restarts_total = 3, 1001, 1002
    plane.set_slot(0, seat=11, acceptor=12)
    plane.set_slot(1, seat=13, acceptor=14)
    plane.publish_map(list(range(BUCKETS)))
    expected = {}
    value = 2000
    for number in range(5):
        for word in SUPERVISOR_WORDS + OCCUPANT_WORDS:
            value += 1
            expected[number, word] = value
            setattr(plane.seat(number), word, value)
    other = Plane.attach(plane.fd)
    for (number, word), stored in expected.items():
        assert getattr(other.seat(number), word) == stored
        assert other.words[other.seat(number).index(word)] == stored
    assert (other.host_state, other.config_epoch, other.restarts_total) == (3, 1001, 1002)
    assert (other.slot_seat(0), other.slot_acceptor(0)) == (11, 12)
    assert (other.slot_seat(1), other.slot_acceptor(1)) == (13, 14)
    assert list(other.read_map()[1]) == list(range(BUCKETS))
    assert (other.workers, other.seats, other.install_key) == (2, 5, KEY)


def test_each_writer_has_lines_of_its_own(plane: Plane) -> None:
    """No 64-byte line is written by two processes."""
    owners: dict[int, str] = {}
    for index in (HOST_STATE, CONFIG_EPOCH, RESTARTS, ACCEPTOR_VERSION, MAP_VERSION):
        assert owners.setdefault(index // 8, "supervisor") == "supervisor"
    for number in range(5):
        seat = plane.seat(number)
        for word in SUPERVISOR_WORDS:
            assert owners.setdefault(seat.index(word) // 8, "supervisor") == "supervisor"
        for word in OCCUPANT_WORDS:
            assert owners.setdefault(seat.index(word) // 8, f"seat {number}") == f"seat {number}"


def test_beat_index_is_the_beat(plane: Plane) -> None:
    """A loop that adds one to that word is seen to beat."""
    plane.words[plane.beat_index(3)] += 1
    assert plane.seat(3).beat == 1
    assert plane.beat_index(3) == plane.seat(3).index("beat")


def test_occupying_raises_the_epoch_and_clears_the_occupants_words(plane: Plane) -> None:
    """A new process never inherits its predecessor's beat, state or acknowledgements."""
    seat = plane.seat(1)
    assert seat.occupy(1, Command.RUN) == 1
    for word in OCCUPANT_WORDS:
        setattr(seat, word, 77)
    seat.pid = 4242
    assert seat.occupy(-1, Command.PARK) == 2
    assert (seat.epoch, seat.command, seat.pid, seat.slot) == (2, Command.PARK, 0, NO_SLOT)
    assert {getattr(seat, word) for word in OCCUPANT_WORDS} == {0}


def test_epoch_zero_means_never_used_for_ever(plane: Plane) -> None:
    """An epoch that overflows its 32 bits goes on with one."""
    seat = plane.seat(0)
    seat.epoch = (1 << 32) - 1
    assert seat.occupy(0, Command.RUN) == 1


def test_vacating_keeps_the_epoch(plane: Plane) -> None:
    """An empty seat still says whose words were the last."""
    seat = plane.seat(0)
    seat.occupy(0, Command.RUN)
    seat.pid, seat.state = 9, SeatState.READY
    seat.vacate()
    assert (seat.epoch, seat.pid, seat.slot, seat.state) == (1, 0, NO_SLOT, SeatState.EMPTY)
    assert seat.command == Command.NONE


def test_what_the_dead_had_open_is_not_counted_while_its_seat_is_empty(plane: Plane) -> None:
    """Workers add up the open calls of all seats, and a batch waits while anything is queued."""
    seat = plane.seat(0)
    seat.occupy(0, Command.RUN)
    seat.open_calls, seat.waiting, seat.loop_lag_us = 7, 3, 5000
    seat.vacate()
    assert (seat.open_calls, seat.waiting, seat.loop_lag_us) == (0, 0, 0)


def test_acceptor_version_moves_only_on_change(plane: Plane) -> None:
    """Workers poll one word; it is quiet while nothing happens."""
    assert plane.set_slot(0, seat=1, acceptor=1)
    version = plane.acceptor_version
    assert not plane.set_slot(0, seat=1, acceptor=1)
    assert plane.acceptor_version == version
    assert plane.set_slot(0, seat=1, acceptor=2)
    assert plane.acceptor_version == version + 1


def test_published_map_is_read_whole(plane: Plane, rng: random.Random) -> None:
    """Every publication gives a new even version and exactly its cells."""
    other = Plane.attach(plane.fd)
    for turn in range(1, 5):
        seats = [rng.randrange(5) for _ in range(BUCKETS)]
        assert plane.publish_map(seats) == 2 * turn == other.map_version
        version, cells = other.read_map()
        assert (version, list(cells)) == (2 * turn, seats)


@pytest.mark.parametrize("fenced", [False, True])
def test_half_written_map_is_never_read(
    plane: Plane, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor stopped in the middle leaves readers with the last good map, and in time."""
    monkeypatch.setattr(plane_module, "FENCED", fenced)
    other = Plane.attach(plane.fd)
    plane.publish_map([1] * BUCKETS)
    assert other.read_map()[0] == 2
    plane.words[MAP_VERSION] = 3
    plane.segment.buf[128:1000] = b"\x02" * 872
    version, cells = other.read_map()
    assert version == 2
    assert set(cells) == {1}
    plane.publish_map([2] * BUCKETS)
    version, cells = other.read_map()
    assert version == 4
    assert set(cells) == {2}


def test_map_of_the_wrong_length_is_refused_before_anything_is_written(plane: Plane) -> None:
    """A bad list changes neither cells nor version."""
    with pytest.raises(ValueError, match="3 buckets"):
        plane.publish_map([1, 2, 3])
    with pytest.raises(OverflowError):
        plane.publish_map([70_000] * BUCKETS)
    assert plane.read_map()[0] == 0


def test_other_layout_is_refused(plane: Plane) -> None:
    """A child of another version maps nothing."""
    plane.words[1] += 1
    with pytest.raises(Fault, match="another layout"):
        Plane.attach(plane.fd)
    read_fd, write_fd = os.pipe()
    with pytest.raises((Fault, ValueError)):
        Plane.attach(read_fd)
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.parametrize(("workers", "seats", "key"), [(0, 3, KEY), (4, 3, KEY), (1, 3, b"short")])
def test_impossible_planes_are_refused(workers: int, seats: int, key: bytes) -> None:
    """More workers than seats, none, or a short key."""
    with pytest.raises(ValueError, match="bad plane"):
        Plane.create(workers, seats, key)
