"""Attempts of dead letters: who is due, in which order, and what a death leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.store import replay_table
from tpo_mp.store.segment_files import Place
from tpo_mp.store.tables import LetterHeader, TableCaps, Tables

NOW = 1e9
RUN = "run"


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    """An empty database."""
    made = Tables(tmp_path / "t.sqlite", TableCaps())
    yield made
    made.close()


def add(tables: Tables, *names: str, at: float = NOW - 100) -> None:
    """Letters; what stands before a colon is the session, of tenant ``t``."""
    for name in names:
        session = name.partition(":")[0] if ":" in name else ""
        header = LetterHeader(0, name, "", session, "shed", at, "m", "t", "/v1/x", "open")
        tables.index([(header, Place(1, 8, 9))])


def ask(tables: Tables, *names: str, now: float = NOW, seat: int = 0) -> None:
    """Give them out."""
    for name in names:
        replay_table.begin(tables, name, now, RUN, seat, 1)


def fail(tables: Tables, name: str, now: float = NOW, **how: bool) -> None:
    """End the attempt that is under way."""
    ((attempt,),) = tables.read("SELECT attempts FROM letter_attempts WHERE call_id=?", (name,))
    replay_table.failed(tables, name, attempt, now, **how)


def due(tables: Tables, now: float = NOW, most: int = 3, limit: int = 100) -> list[str]:
    """Who is due."""
    return replay_table.due(tables, now, most, limit)


def test_of_a_session_only_the_oldest_open_letter_is_due(tables: Tables) -> None:
    """Also while it is being asked, or waits after a failure; letters without one go freely."""
    add(tables, "a:1", "a:2", "b:1", "x", "y", "a:3")
    assert due(tables) == ["a:1", "b:1", "x", "y"]
    assert due(tables, limit=2) == ["a:1", "b:1"]
    ask(tables, "a:1", "x")
    assert due(tables) == ["b:1", "y"]
    fail(tables, "a:1")
    assert due(tables) == ["b:1", "y"]
    tables.set_status("a:1", "replayed")
    assert due(tables) == ["a:2", "b:1", "y"]


def test_letters_of_a_session_go_in_the_order_of_their_drop(tables: Tables) -> None:
    """Not in that of their arrival, for they come from several workers."""
    add(tables, "a:2", at=NOW - 50)
    add(tables, "a:1", at=NOW - 51)
    add(tables, "a:3", at=NOW - 50)
    order = []
    while ready := due(tables):
        order += ready
        tables.set_status(ready[0], "replayed")
    assert order == ["a:1", "a:2", "a:3"]


def test_attempts_wait_twice_as_long_each_time_and_at_most_a_minute(tables: Tables) -> None:
    """2, 4, 8, 16, 32, 60, 60 seconds; a fresh letter waits one."""
    add(tables, "x", at=NOW)
    assert (due(tables, NOW + 0.9), due(tables, NOW + 1)) == ([], ["x"])
    now, waits = NOW + 1, []
    for _ in range(7):
        ask(tables, "x", now=now)
        fail(tables, "x", now)
        wait = next(s for s in range(1, 100) if due(tables, now + s, most=99))
        waits.append(wait)
        now += wait
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    assert replay_table.wait_s(10**6) == 60


def test_a_letter_tried_often_enough_stays_and_holds_nobody_up(tables: Tables) -> None:
    """So does one that can never be asked; not before its last attempt is over."""
    add(tables, "a:1", "a:2", "b:1", "b:2")
    ask(tables, "a:1", "b:1")
    assert due(tables, most=1) == []
    fail(tables, "a:1")
    assert due(tables, most=1) == ["a:2"]
    fail(tables, "b:1", for_good=True)
    assert due(tables, NOW + 1e6, most=100) == ["a:1", "b:2"]
    assert replay_table.of(tables, "b:1").attempts == 1


def test_a_letter_whose_worker_died_is_due_again_and_marked(tables: Tables, tmp_path: Path) -> None:
    """Whether the worker, all of the host, or only its word was lost; others are left alone."""
    add(tables, "dead", "lives", "older", "mute")
    ask(tables, "dead", seat=0)
    ask(tables, "lives", seat=1)
    replay_table.begin(tables, "older", NOW, "run before", 1, 1)
    ask(tables, "mute", seat=1, now=NOW - replay_table.ASKING_S)
    tables.close()
    again = Tables(tmp_path / "t.sqlite", TableCaps())  # another process finds it all
    assert replay_table.asking(again) == 4
    assert replay_table.lost(again, NOW, RUN, {(1, 1)}) == 3
    assert due(again) == ["dead", "older", "mute"]
    assert [replay_table.of(again, n).repeated for n in ("dead", "lives")] == [True, False]
    assert replay_table.asking(again) == 1
    replay_table.ended(again, "lives")
    assert (replay_table.asking(again), replay_table.of(again, "lives").attempts) == (0, 1)
    again.close()


def test_old_letters_are_named_unless_they_are_being_asked(tables: Tables) -> None:
    """And those that are gone are forgotten."""
    add(tables, "old", "asked", at=NOW - 50)
    add(tables, "young", at=NOW)
    ask(tables, "asked")
    assert replay_table.too_old(tables, NOW - 10, 10) == ["old"]
    tables.drop_letters(["asked"])
    replay_table.tidy(tables)
    assert replay_table.of(tables, "asked").attempts == 0


def test_what_may_have_been_done_twice_is_marked(tables: Tables) -> None:
    """An unclear end, an attempt begun over one without an end, an answer of one given up."""
    add(tables, "clean", "unclear", "over", "late")
    ask(tables, "clean", "unclear", "over", "late")
    fail(tables, "clean")
    fail(tables, "unclear", unclear=True)
    ask(tables, "clean", "over")
    replay_table.answered(tables, "clean", 2)
    ask(tables, "late")
    replay_table.failed(tables, "late", 1, NOW)  # a word of an attempt that is not the last
    assert replay_table.asking(tables) == 2
    replay_table.answered(tables, "late", 1)
    names = ("clean", "unclear", "over", "late")
    assert [replay_table.of(tables, n).repeated for n in names] == [False, True, True, True]
    assert replay_table.asking(tables) == 1


def test_a_worker_is_asked_for_nothing_but_its_own_attempt(tables: Tables) -> None:
    """Its number, its seat and its life; what it withdraws is nobody else's."""
    add(tables, "x")
    assert replay_table.begin(tables, "x", NOW, RUN, 0, 1) == 1
    assert replay_table.asked_by(tables, RUN) == [("x", 1, 0, 1)]
    assert replay_table.under_way(tables, "x", 1, RUN, 0, 1)
    for other in (("x", 2, RUN, 0, 1), ("x", 1, "then", 0, 1), ("x", 1, RUN, 1, 1)):
        assert not replay_table.under_way(tables, *other)
    replay_table.withdrawn(tables, "x", RUN, 0, 2)
    assert replay_table.under_way(tables, "x", 1, RUN, 0, 1)
    replay_table.withdrawn(tables, "x", RUN, 0, 1)
    assert replay_table.asking(tables) == 0


@pytest.mark.parametrize("session", ["", "s:"])
def test_looking_for_due_letters_costs_the_same_however_many_wait(
    tables: Tables, session: str
) -> None:
    """Letters that wait, that stand behind one of their session, and that were tried enough."""
    names = [f"{session}{n}" for n in range(2000)]
    add(tables, *names)
    for name in names[:1000]:
        ask(tables, name)
        fail(tables, name, for_good=True)
    ask(tables, names[1000])
    fail(tables, names[1000])
    for name in () if session else names[1001:]:
        ask(tables, name)
    while tables.read("SELECT 1 FROM dead_letters WHERE look_at<=?", (NOW,)).fetchone():
        assert due(tables) == []
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    database = tables.read("SELECT 1").connection
    database.set_progress_handler(count, 10)
    assert due(tables) == []
    assert due(tables, NOW + 2) == [names[1000]]
    assert replay_table.too_old(tables, NOW - 200, 10) == []
    database.set_progress_handler(None, 0)
    assert steps < 100, "a thousand steps of SQLite's machine are enough for any number of letters"
    tables.set_status(names[1000], "replayed")
    assert due(tables, NOW + 2) == ([names[1001]] if session else [])


def test_of_a_session_whose_first_letter_is_gone_the_next_is_due(tables: Tables) -> None:
    """Dropped with its segment, trimmed away, forgotten, or closed."""
    add(tables, "a:1", "a:2", "a:3", "a:4", "a:5")
    assert due(tables) == ["a:1"]
    tables.set_status("a:1", "aged_out")
    assert due(tables) == ["a:2"]
    tables.drop_letters(["a:2"])
    assert due(tables) == ["a:3"]
    tables.trim_letters(2)
    assert due(tables) == ["a:4"]
    ask(tables, "a:4")
    fail(tables, "a:4", for_good=True)
    assert due(tables) == ["a:5"]


def test_a_letter_that_is_put_back_is_not_given_out_twice(tables: Tables) -> None:
    """The log took it back and it was indexed anew while it was being asked."""
    add(tables, "x", "y")
    ask(tables, "x", "y")
    fail(tables, "y")
    tables.drop_letters(["x", "y"])
    add(tables, "x", "y")
    assert due(tables) == []
    assert due(tables, NOW + 2) == ["y"]


def test_the_oldest_letters_come_in_the_order_of_their_drop(tables: Tables) -> None:
    """Of all, of a session, or dropped since; closed ones are none."""
    add(tables, "s:3", at=NOW - 1)
    add(tables, "s:1", "x", "s:closed", at=NOW - 9)
    add(tables, "t:2", at=NOW - 5)
    tables.set_status("s:closed", "replayed")

    def oldest(limit: int, session: str | None = None, since: float | None = None) -> list[str]:
        return [row.call_id for row in tables.oldest_letters(limit, session, since)]

    assert oldest(9) == ["s:1", "x", "t:2", "s:3"]
    assert (oldest(2), oldest(9, "s")) == (["s:1", "x"], ["s:1", "s:3"])
    assert oldest(9, since=NOW - 5) == ["t:2", "s:3"]
