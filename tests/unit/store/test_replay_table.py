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
    replay_table.failed(tables, "a:1", NOW)
    assert due(tables) == ["b:1", "y"]
    tables.set_status("a:1", "replayed")
    assert due(tables) == ["a:2", "b:1", "y"]


def test_attempts_wait_twice_as_long_each_time_and_at_most_a_minute(tables: Tables) -> None:
    """2, 4, 8, 16, 32, 60, 60 seconds; a fresh letter waits one."""
    add(tables, "x", at=NOW)
    assert (due(tables, NOW + 0.9), due(tables, NOW + 1)) == ([], ["x"])
    now, waits = NOW + 1, []
    for _ in range(7):
        ask(tables, "x", now=now)
        replay_table.failed(tables, "x", now)
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
    replay_table.failed(tables, "a:1", NOW)
    assert due(tables, most=1) == ["a:2"]
    replay_table.failed(tables, "b:1", NOW, for_good=True)
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
