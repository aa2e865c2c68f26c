"""Pages of records: by session, by state, the latest word first, never too long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.control import answers, results
from tpo_mp.store.questions import RESULTS, RecordQuery
from tpo_mp.store.shelf import Shelf, ShelfOptions


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """Six records of two sessions in three states."""
    made = Shelf(tmp_path, ShelfOptions())
    for n in range(6):
        put(made, n, ("completed", "failed", "processing")[n % 3])
    made.commit()
    yield made
    made.close()


def put(shelf: Shelf, n: int, status: str, **more: Any) -> None:
    """Keep a record the way a worker sends it."""
    record = {"request_id": f"c{n}", "session_id": f"s{n % 2}", "status": status} | more
    assert answers.put(shelf, RESULTS, f"c{n}", json.dumps(record).encode(), 60.0)


def ask(shelf: Shelf, **query: Any) -> tuple[list[str], str | None]:
    """Ids of one page and its cursor."""
    ok, raw = answers.get(shelf, RESULTS, RecordQuery(**query).key())
    assert ok
    assert raw is not None
    found = json.loads(raw)
    assert found["count"] == len(found["results"])
    return [record["request_id"] for record in found["results"]], found["next"]


def test_latest_word_comes_first_and_pages_join(shelf: Shelf) -> None:
    """A record that changed moves to the front."""
    put(shelf, 2, "completed")
    first, after = ask(shelf, limit=4)
    assert after is not None
    rest, end = ask(shelf, limit=4, after=int(after))
    assert first + rest == ["c2", "c5", "c4", "c3", "c1", "c0"]
    assert end is None


def test_session_and_state_narrow_the_list(shelf: Shelf) -> None:
    """Alone and together."""
    assert ask(shelf, session="s1")[0] == ["c5", "c3", "c1"]
    assert ask(shelf, state="failed")[0] == ["c4", "c1"]
    assert ask(shelf, session="s0", state="completed")[0] == ["c0"]
    assert ask(shelf, session="nobody")[0] == []


def test_long_records_make_short_pages(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one record, however long; the cursor leads to the rest."""
    monkeypatch.setattr(results, "PAGE_BYTES", 10)
    found, after = [], None
    while True:
        page, cursor = ask(shelf, limit=200, after=after)
        assert len(page) == 1
        found += page
        if cursor is None:
            break
        after = int(cursor)
    assert found == ["c5", "c4", "c3", "c2", "c1", "c0"]


def test_each_question_reads_an_index(shelf: Shelf) -> None:
    """No question sorts or scans all that is kept."""
    tables = shelf._tables
    assert tables is not None
    plans: list[str] = []
    tables._db.set_trace_callback(plans.append)
    for query in ({}, {"session": "s1"}, {"state": "failed"}):
        ask(shelf, **query)
    tables._db.set_trace_callback(None)
    assert len(plans) == 3
    for sql in plans:
        plan = " ".join(str(row[3]) for row in tables._db.execute("EXPLAIN QUERY PLAN " + sql))
        assert "USING INDEX kv_" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_closed_database_is_no_empty_page(shelf: Shelf) -> None:
    """There is no page then."""
    tables, shelf._tables = shelf._tables, None
    assert results.page(shelf, RecordQuery()) is None
    shelf._tables = tables
