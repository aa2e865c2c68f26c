"""The database: lifetimes, caps, migrations and damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tpo_mp.store.segment_files import Place
from tpo_mp.store.tables import MIGRATIONS, LetterHeader, TableCaps, Tables


class Clock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Answer the time."""
        return self.now


def header(call_id: str, *, reason: str = "shed", tenant: str = "t") -> LetterHeader:
    """A letter's header."""
    return LetterHeader(0, call_id, "", "", reason, 1.0, "m", tenant, "/v1", "open")


def test_a_value_lives_as_long_as_asked(tmp_path: Path) -> None:
    """Before its end it is answered, after it not, and then it is deleted."""
    clock = Clock()
    tables = Tables(tmp_path / "t.sqlite", TableCaps(), clock=clock)
    assert tables.put("results", "k", b"v", 10.0)
    tables.commit()
    assert tables.get("results", "k") == b"v"
    clock.now += 11.0
    assert tables.get("results", "k") is None
    assert tables.expire() == 1
    tables.commit()
    assert tables.fills["results"].rows == 0
    tables.close()


def test_a_second_put_replaces_and_zero_ttl_forgets(tmp_path: Path) -> None:
    """The fill counts follow replacements and removals."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    tables.put("a", "k", b"12345", 60.0)
    tables.put("a", "k", b"1", 60.0)
    assert (tables.get("a", "k"), tables.fills["a"].bytes) == (b"1", 1)
    tables.put("a", "k", b"", 0.0)
    tables.commit()
    assert (tables.get("a", "k"), tables.fills["a"].rows) == (None, 0)
    tables.close()


def test_a_full_table_evicts_its_oldest_rows(tmp_path: Path) -> None:
    """Row and byte caps hold; other tables are left alone."""
    clock = Clock()
    caps = TableCaps(rows=20, bytes=1000, age_s=1e6, value_bytes=500)
    tables = Tables(tmp_path / "t.sqlite", caps, clock=clock)
    tables.put("other", "k", b"v", 1e5)
    for n in range(50):
        clock.now += 1
        tables.put("a", str(n), b"x" * 10, 1e5)
    assert tables.fills["a"].rows <= 20
    assert tables.get("a", "49") == b"x" * 10
    assert tables.get("a", "0") is None
    for n in range(10):
        clock.now += 1
        tables.put("a", f"big{n}", b"x" * 300, 1e5)
    assert tables.fills["a"].bytes <= 1000
    assert tables.fills["a"].evicted > 0
    assert not tables.put("a", "huge", b"x" * 501, 1e5)
    assert tables.get("other", "k") == b"v"
    tables.commit()
    tables.close()


def test_the_number_of_tables_is_bounded(tmp_path: Path) -> None:
    """A flood of table names is refused."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    done = [tables.put(f"table{n}", "k", b"v", 60.0) for n in range(100)]
    assert done == [True] * 64 + [False] * 36
    tables.close()


def test_counts_are_right_after_a_reopen(tmp_path: Path) -> None:
    """Fill levels are taken from the file."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    for n in range(5):
        tables.put("a", str(n), b"xx", 60.0)
    tables.close()
    again = Tables(tmp_path / "t.sqlite", TableCaps())
    assert (again.fills["a"].rows, again.fills["a"].bytes) == (5, 10)
    again.close()


def test_a_rolled_back_batch_leaves_nothing(tmp_path: Path) -> None:
    """Rows and counts return to what they were."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    tables.put("a", "kept", b"1", 60.0)
    tables.commit()
    tables.put("a", "gone", b"1", 60.0)
    tables.rollback()
    assert tables.get("a", "gone") is None
    assert tables.fills["a"].rows == 1
    tables.close()


def test_letters_page_newest_first(tmp_path: Path) -> None:
    """Pages follow each other by sequence, and a tenant sees its own only."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    rows = [(header(f"c{n}", tenant="ab"[n % 2]), Place(1, n, 1)) for n in range(10)]
    assert tables.index(rows) == 10
    assert tables.index(rows[:3]) == 0
    first = tables.letters(4, None, None)
    assert [h.call_id for h in first] == ["c9", "c8", "c7", "c6"]
    second = tables.letters(4, first[-1].seq, None)
    assert [h.call_id for h in second] == ["c5", "c4", "c3", "c2"]
    assert [h.call_id for h in tables.letters(9, None, "a")] == ["c8", "c6", "c4", "c2", "c0"]
    tables.commit()
    tables.close()


def test_letters_leave_the_list_by_status_segment_and_cap(tmp_path: Path) -> None:
    """A replayed letter, a deleted segment's and those over the cap are not listed."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    tables.index([(header(f"c{n}"), Place(n // 4 + 1, n, 1)) for n in range(12)])
    assert tables.set_status("c11", "replayed")
    assert not tables.set_status("nobody", "replayed")
    tables.drop_segments([1])
    assert tables.open_letters() == 7
    assert tables.trim_letters(5) == 3
    assert [h.call_id for h in tables.letters(99, None, None)] == ["c10", "c9", "c8", "c7"]
    tables.commit()
    tables.close()


def test_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    """Garbage is moved away and a new database begun."""
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    tables = Tables(path, TableCaps())
    assert tables.put("a", "k", b"v", 60.0)
    tables.commit()
    assert (tmp_path / "t.sqlite.corrupt").exists()
    tables.close()


def test_an_older_schema_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    """``user_version`` moves forward only."""
    path = tmp_path / "t.sqlite"
    Tables(path, TableCaps()).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    db.commit()
    db.close()
    with pytest.raises(sqlite3.OperationalError, match="newer"):
        Tables(path, TableCaps())
    assert path.exists()


def test_the_file_is_private(tmp_path: Path) -> None:
    """The database holds answers: mode 0600, also its log."""
    tables = Tables(tmp_path / "t.sqlite", TableCaps())
    tables.put("a", "k", b"v", 60.0)
    assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}
    tables.close()
