"""Control's part of asking dead letters again: who is given which, and what it writes down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.control.test_jobs import SEATS, NowKeeper
from tests.unit.control.test_reruns import Post
from tpo_mp.config.sections import ReplaySection
from tpo_mp.control.replays import Replays
from tpo_mp.shm import frames
from tpo_mp.shm.plane import Command, HostState, Plane, SeatState
from tpo_mp.store import replay_table
from tpo_mp.store.letters import Letter
from tpo_mp.store.questions import ReplayWord
from tpo_mp.store.shelf import Shelf, ShelfOptions


class House:
    """Two ready workers, a shelf with letters, and control's time in the test's hands."""

    def __init__(self, folder: Path) -> None:
        self.plane = Plane.create(2, SEATS, bytes(16))
        self.plane.host_state = HostState.RUNNING
        for seat in (0, 1):
            self.enter(seat)
        self.shelf = Shelf(folder, ShelfOptions())
        self.keeper = NowKeeper(self.shelf)
        self.now = 1000.0
        self.again()

    def again(self, run: int = 7) -> None:
        """Another control process, of that life of the host."""
        self.post = Post()
        self.replays = Replays(
            self.plane, self.keeper, self.post, run,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )  # fmt: skip
        self.replays.options = ReplaySection(enabled=True, concurrency=3, max_attempts=3)

    def enter(self, seat: int) -> None:
        """A worker takes a seat, after whoever was there."""
        self.plane.seat(seat).occupy(seat, Command.RUN)
        self.plane.seat(seat).state = SeatState.READY

    def drop(self, *names: str) -> None:
        """Letters; what stands before a colon is the session."""
        for name in names:
            session = name.partition(":")[0] if ":" in name else ""
            self.now += 0.001
            self.shelf.add_letters(
                [Letter(name, "", session, "shed", self.now, "m", "", "/v1/x", b"{}")]
            )
        self.shelf.commit()

    def turn(self, seconds: float = 2.0) -> list[tuple[int, str, int]]:
        """Let time pass; answers (seat, letter, attempt) of what was given out."""
        self.now += seconds
        self.replays.tick()
        parcels, self.post.parcels = self.post.parcels, []
        given = []
        for seat, records, done in parcels:
            frame = msgspec.msgpack.decode(frames.payload(records[0]), type=frames.ReplayFrame)
            given.append((seat, frame.call_id, frame.attempt))
            done(True)
        return given

    def tell(self, seat: int, name: str, how: Any, attempt: int = 0, **more: bool) -> bytes | None:
        """A worker's word; answers what it is told."""
        said: list[bytes | None] = []
        word = ReplayWord(how, attempt, **more)
        epoch = self.plane.seat(seat).epoch
        self.replays.told(seat, epoch, name, word.value(), said.append)
        (answer,) = said
        return answer

    def known(self, name: str) -> tuple[str, int, bool]:
        """Status, attempts, repeated."""
        found = self.shelf.letters.read(name)
        assert found is not None
        tried = self.shelf.with_tables(lambda t: replay_table.of(t, name))
        assert tried is not None
        return found[0].status, tried.attempts, tried.repeated


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """One, given back at the end."""
    made = House(tmp_path)
    yield made
    made.shelf.close()
    made.plane.close()


def test_letters_go_to_the_workers_as_far_as_allowed(house: House) -> None:
    """The oldest of each session, by turns, and the next when one has ended."""
    house.drop("a:1", "a:2", "x", "y", "z")
    given = house.turn()
    assert [(n, attempt) for _, n, attempt in given] == [("a:1", 1), ("x", 1), ("y", 1)]
    assert len({seat for seat, _, _ in given}) == 2
    seat = given[0][0]
    assert house.tell(seat, "a:1", "begun", 1) == b"1"
    assert house.tell(1 - seat, "a:1", "begun", 1) == b"", "it is not that worker's"
    assert house.tell(seat, "a:1", "answered", 1) == b""
    assert house.known("a:1") == ("replayed", 1, False)
    assert [n for _, n, _ in house.turn(0)] == ["a:2"]
    assert house.replays.sent == 4


def test_what_a_control_may_have_died_giving_out_is_given_out_once_more(house: House) -> None:
    """Under its number, so that a worker that has it or is done with it knows."""
    house.drop("x", "y", "z")
    given = house.turn()
    seat, name, attempt = given[0]
    house.again()
    again = house.turn()
    assert sorted(again) == sorted(given)
    assert house.tell(seat, name, "failed", attempt) == b""
    assert house.tell(seat, name, "begun", attempt) == b"", "that attempt is over"
    assert house.turn(0.5) == [], "once"
    house.again(run=8)  # all of the host died: nobody asks any more
    again = house.turn()
    assert {(n, number) for _, n, number in again} == {("x", 2), ("y", 2), ("z", 2)}
    assert house.replays.repeated == 2


def test_a_letter_whose_worker_died_goes_to_another_and_is_marked(house: House) -> None:
    """Its own late word is of an attempt that is over."""
    house.drop("x")
    ((seat, _, _),) = house.turn()
    house.enter(seat)
    ((_, _, attempt),) = house.turn(0.25)
    assert attempt == 2
    assert house.known("x") == ("open", 2, True)
    assert house.replays.repeated == 1


def test_somebody_who_asks_by_hand_is_written_down_as_well(house: House) -> None:
    """The scheduler keeps off; the next attempt over one without an end is marked."""
    assert house.turn() == []
    house.drop("a:1", "a:2")
    assert house.tell(0, "a:1", "begun") == b"1"
    assert house.turn() == []
    assert house.tell(0, "a:1", "failed", 1, unclear=True) == b""
    assert house.known("a:1") == ("open", 1, True)
    assert house.tell(1, "a:1", "begun") == b"2"
    assert house.tell(1, "a:1", "withdrawn") == b""
    house.replays.options = ReplaySection()  # off: words are taken all the same
    assert house.tell(0, "a:2", "begun") == b"1"
    assert house.tell(1, "a:2", "begun") == b"2"
    assert house.tell(1, "a:2", "answered", 2) == b""
    assert house.known("a:2") == ("replayed", 2, True)


def test_what_was_answered_since_somebody_looked_is_not_begun(house: House) -> None:
    """Nor what was dropped: who wants to ask by hand looked before it had the lease."""
    house.drop("x", "y")
    assert house.tell(0, "x", "begun") == b"1"
    assert house.tell(0, "x", "answered", 1) == b""
    assert house.tell(1, "x", "begun") == b""
    assert house.known("x") == ("replayed", 1, False)
    house.shelf.letters.set_status("y", "dropped", house.now)
    assert house.tell(1, "y", "begun") == b""


def test_a_word_that_could_not_be_written_is_not_taken(house: House) -> None:
    """So it is told again; of a letter that is gone there is nothing to write."""
    house.drop("x")
    assert house.tell(0, "x", "begun") == b"1"
    house.keeper.broken = True
    assert house.tell(0, "x", "answered", 1) is None
    house.keeper.broken = False
    assert house.known("x")[0] == "open"
    assert house.tell(0, "x", "answered", 1) == b""
    assert house.tell(0, "nobody", "answered", 1) == b""


def test_old_letters_are_given_up(house: House) -> None:
    """Also those that can never be asked."""
    house.drop("x")
    ((seat, _, attempt),) = house.turn()
    assert house.tell(seat, "x", "refused", attempt) == b""
    assert house.turn(1e5) == []
    assert house.known("x") == ("aged_out", 1, False)
    assert house.replays.aged_out == 1
