"""The shared ledger: numbers by name are exact, whole after a death, and bounded in number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.deaths import Died, dies_at
from tests.support.fake_env import SilentMetrics, SilentSeries
from tpo_mp.errors import Shed
from tpo_mp.ports import Cells
from tpo_mp.shm import ledger as ledger_file
from tpo_mp.shm import rows as rows_file
from tpo_mp.shm.ledger import LEAST_ROWS, PLACES, SET_ROWS, SharedLedger
from tpo_mp.shm.rows import RowTable


class Counted(SilentMetrics):
    """Metrics a test can read."""

    def __init__(self) -> None:
        self.series: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault(name, SilentSeries())


@pytest.fixture
def table() -> Iterator[RowTable]:
    """The smallest table there is: one set of configured names, six of the crowd."""
    made = RowTable.create(LEAST_ROWS)
    yield made
    made.close()


@pytest.fixture
def metrics() -> Counted:
    """Metrics to read."""
    return Counted()


@pytest.fixture
def ledger(table: RowTable, metrics: Counted) -> SharedLedger:
    """A ledger on it."""
    return SharedLedger(table, metrics)


def test_ordinals_count_each_name_by_itself(ledger: SharedLedger) -> None:
    """1, 2, 3; another name, and the same name in the crowd, begin at 1."""
    assert [ledger.ordinal("a") for _ in range(3)] == [1, 2, 3]
    assert ledger.ordinal("b") == 1
    assert ledger.ordinal("a", crowd=True) == 1
    assert ledger.ordinal("a") == 4


def test_every_ledger_on_a_table_counts_the_same(table: RowTable, ledger: SharedLedger) -> None:
    """Two mappings of one table are one truth."""
    other = SharedLedger(table, SilentMetrics())
    assert [ledger.ordinal("a"), other.ordinal("a"), ledger.ordinal("a")] == [1, 2, 3]


def test_an_update_sees_what_the_last_one_left(ledger: SharedLedger) -> None:
    """Zeros at first; four numbers, fractions and all."""
    seen: list[Cells] = []

    def change(cells: Cells) -> Cells:
        seen.append(cells)
        return (cells[0] + 0.5, -1.0, 2.0**53, 4.0)

    assert ledger.update("bucket", change) == (0.5, -1.0, 2.0**53, 4.0)
    ledger.update("bucket", change)
    assert seen == [(0.0, 0.0, 0.0, 0.0), (0.5, -1.0, 2.0**53, 4.0)]


def test_a_change_that_fails_changes_nothing(ledger: SharedLedger) -> None:
    """Its error reaches the caller, and the lock is free again."""
    ledger.ordinal("a")

    def fail(_: Cells) -> Cells:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.update("a", fail)
    assert ledger.ordinal("a") == 2


def test_the_name_not_used_for_longest_gives_way(ledger: SharedLedger, metrics: Counted) -> None:
    """At the cap an old name begins again; one in use does not, and it is counted."""
    assert ledger.ordinal("kept") == 1
    for number in range(3 * PLACES):
        ledger.ordinal(f"passing-{number}")
        assert ledger.ordinal("kept") == number + 2
    assert metrics.series["tpo_ledger_replaced_total"].value == 2 * PLACES + 1
    assert ledger.ordinal("passing-0") == 1


def test_the_crowd_pushes_out_nothing_but_the_crowd(ledger: SharedLedger) -> None:
    """However many names clients bring, configured ones keep their count."""
    ledger.ordinal("configured")
    for number in range(500):
        ledger.ordinal(f"client-{number}", crowd=True)
    assert ledger.ordinal("configured") == 2


def test_whoever_cannot_have_the_lock_is_told_to_come_back(
    table: RowTable, ledger: SharedLedger, metrics: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wrong count, no hang; and in vain it waits once, not for every request."""
    waits = []

    def refuse(row: int, wait_ns: int) -> bool:
        waits.append(wait_ns)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(table, "acquire", refuse)
        for _ in range(2):
            with pytest.raises(Shed) as told:
                ledger.ordinal("a")
    assert told.value.retry_after_s == 1
    assert waits == [ledger_file.PATIENCE_NS, rows_file.LOCK_WAIT_NS]
    assert metrics.series["tpo_ledger_refused_total"].value == 2
    assert ledger.ordinal("a") == 1
    assert not ledger._stuck


def test_a_writer_that_dies_leaves_an_exact_count(
    table: RowTable, ledger: SharedLedger, metrics: Counted
) -> None:
    """Whatever line it died at, the next ordinal is the one due, or one more; names stay apart."""
    due = 1
    ledger.ordinal("other")
    for event in range(1, 200):
        died = dies_at(event, partial(ledger.ordinal, "a"), rows_file)
        table._held.clear()  # the kernel drops a dead process's locks
        found = ledger.ordinal("a")
        assert found in ((due, due + 1) if died else (due + 1,))
        due = found + 1
        if not died:
            break
    assert metrics.series["tpo_ledger_mended_total"].value >= 1
    assert ledger.ordinal("other") == 2


def test_bytes_that_are_neither_old_nor_new_are_zeroed(
    table: RowTable, ledger: SharedLedger
) -> None:
    """A row torn within its payload begins again, and its neighbours stay."""
    ledger.ordinal("a")
    ledger.ordinal("b")
    row = table.under(SET_ROWS + 1)
    torn = row.read()[:20] + b"\xff" * 36
    row._map[row._at + 8 : row._at + 64] = torn
    table.words[row._word] |= 1
    assert ledger.ordinal("a") == 1
    assert ledger.ordinal("b") == 2


@pytest.mark.parametrize("rows", [8, LEAST_ROWS + 1])
def test_a_table_of_another_size_is_refused(rows: int) -> None:
    """Sets must be whole, and there must be some of each kind."""
    table: Any = type("Table", (), {"rows": rows})()
    with pytest.raises(ValueError, match="rows"):
        SharedLedger(table, SilentMetrics())


def test_death_is_no_part_of_the_test_itself() -> None:
    """The stand-in for a death is no ``Exception`` that product code could catch."""
    assert not issubclass(Died, Exception)


def test_a_name_is_looked_at_without_a_place_for_it(table: RowTable, ledger: SharedLedger) -> None:
    """Its numbers where it has any; who only asks pushes nobody out."""
    ledger.update("a", lambda _: (1.0, 2.0, 3.0, 4.0))
    ledger.update("b", lambda _: (5.0, 6.0, 7.0, 8.0), crowd=True)
    before = bytes(table.map)
    assert ledger.look("a") == (1, 2, 3, 4)
    assert ledger.look("b", crowd=True) == (5, 6, 7, 8)
    assert not any(ledger.look("b") + ledger.look("a", crowd=True))
    assert not any(any(ledger.look(f"n{n}", crowd=True)) for n in range(100))
    assert bytes(table.map) == before
