"""Kept counts in the database: the newest numbers, bounded in number and age."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.store import counts as counts_file
from tpo_mp.store.counts import AGE_S, CountTable
from tpo_mp.store.tables import TableCaps, Tables


class Kept:
    """A database at an instant."""

    def __init__(self, folder: Path) -> None:
        self.now = 1e9
        self.tables = Tables(folder / "t.sqlite", TableCaps())
        self.counts = CountTable(self.tables, lambda: self.now)

    def keep(self, *names: str, number: float = 1.0) -> None:
        """Write rows, a second later than the last."""
        self.now += 1
        self.counts.keep([(n.encode(), n.isupper(), (number, 2.5, 3.0, 4.0)) for n in names])
        self.tables.commit()

    @property
    def names(self) -> list[str]:
        """What is kept, the latest at the end."""
        return [digest.decode() for digest, _, _ in self.counts.kept()]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """An empty one."""
    made = Kept(tmp_path)
    yield made
    made.tables.close()


def test_the_newest_numbers_are_kept(kept: Kept, tmp_path: Path) -> None:
    """Also for whoever opens the file next."""
    kept.keep("a", "B")
    kept.keep("a", number=7.25)
    assert kept.counts.kept() == [
        (b"B", True, (1.0, 2.5, 3.0, 4.0)), (b"a", False, (7.25, 2.5, 3.0, 4.0)),
    ]  # fmt: skip
    again = Tables(tmp_path / "t.sqlite", TableCaps())
    assert CountTable(again).kept() == kept.counts.kept()
    again.close()


def test_what_is_too_old_or_too_much_goes(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unwritten first."""
    monkeypatch.setattr(counts_file, "MOST", 2)
    kept.keep("a")
    kept.keep("b")
    assert kept.counts.tidy() == 0
    kept.keep("c", "a")
    assert kept.counts.tidy() == 1
    assert sorted(kept.names) == ["a", "c"]
    kept.now += AGE_S - 1
    kept.keep("a")
    kept.now += 1
    assert kept.counts.tidy() == 1
    assert kept.names == ["a"]
