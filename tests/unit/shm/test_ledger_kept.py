"""Kept rows of the ledger: told apart without their names, found when they change, put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_env import SilentMetrics
from tpo_mp.ports import Cells
from tpo_mp.shm.ledger import LEAST_ROWS, SharedLedger
from tpo_mp.shm.ledger_kept import KeptRows, restore
from tpo_mp.shm.ledger_watch import digest_of
from tpo_mp.shm.rows import RowTable


@pytest.fixture
def table() -> Iterator[RowTable]:
    """The smallest table there is."""
    made = RowTable.create(LEAST_ROWS)
    yield made
    made.close()


@pytest.fixture
def ledger(table: RowTable) -> SharedLedger:
    """A ledger on it."""
    return SharedLedger(table, SilentMetrics())


def put(ledger: SharedLedger, name: str, *cells: float, crowd: bool = False) -> None:
    """Give a name four numbers."""
    a, b, c, d = cells
    ledger.update(name, lambda _: (a, b, c, d), crowd=crowd)


def read(ledger: SharedLedger, name: str, *, crowd: bool = False) -> Cells:
    """The numbers of a name."""
    return ledger.update(name, lambda cells: cells, crowd=crowd)


def added(there: Cells, kept: Cells) -> Cells:
    """Cell by cell."""
    a, b, c, d = (x + y for x, y in zip(there, kept, strict=True))
    return (a, b, c, d)


def test_only_kept_rows_that_changed_are_found(table: RowTable, ledger: SharedLedger) -> None:
    """Once each, with what they are now and where they belong."""
    kept = KeptRows(table)
    assert kept.changed() == []
    put(ledger, "kept:a", 1, 2, 3, 4)
    put(ledger, "kept:b", 5, 6, 7, 8, crowd=True)
    put(ledger, "other", 9, 9, 9, 9)
    assert {(row.digest, row.crowd, row.cells) for row in kept.changed()} == {
        (digest_of("kept:a"), False, (1, 2, 3, 4)),
        (digest_of("kept:b"), True, (5, 6, 7, 8)),
    }
    assert kept.changed() == []
    put(ledger, "kept:a", 1, 2, 3, 5)
    assert [row.cells for row in kept.changed()] == [(1, 2, 3, 5)]
    kept.forget()
    assert len(kept.changed()) == 2


def test_a_row_that_is_being_written_is_found_the_next_time(
    table: RowTable, ledger: SharedLedger
) -> None:
    """Never in part."""
    put(ledger, "kept:a", 1, 2, 3, 4)
    kept = KeptRows(table)
    row = next(n for n in range(table.rows) if digest_of("kept:a") in (table.read(n) or b""))
    word = (64 + row * 64) // 8
    whole = table.words[word]
    table.words[word] = whole | 1
    assert kept.changed() == []
    table.words[word] = whole
    assert [found.cells for found in kept.changed()] == [(1, 2, 3, 4)]


def test_rows_come_back_in_another_table(table: RowTable, ledger: SharedLedger) -> None:
    """Each under its name, joined with what is there already."""
    put(ledger, "kept:a", 1, 2, 3, 4)
    put(ledger, "kept:b", 5, 6, 7, 8, crowd=True)
    rows = KeptRows(table).changed()
    other = RowTable.create(LEAST_ROWS)
    try:
        second = SharedLedger(other, SilentMetrics())
        put(second, "kept:a", 0, 10, 0, 0)
        assert restore(second, rows, added) == 2
        assert read(second, "kept:a") == (1, 12, 3, 4)
        assert read(second, "kept:b", crowd=True) == (5, 6, 7, 8)
        assert read(second, "kept:b") == (0, 0, 0, 0)
    finally:
        other.close()
