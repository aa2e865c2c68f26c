"""Documents that came from files: what is remembered of them, and that it changes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.store import rag_files, rag_table
from tpo_mp.store.rag_files import FileKey
from tpo_mp.store.rag_questions import RagChange
from tpo_mp.store.tables import TableCaps, Tables


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    """A new database."""
    made = Tables(tmp_path / "store.db", TableCaps())
    yield made
    made.close()


def change(name: str, **caps: int) -> RagChange:
    """A document of tenant ``a``."""
    return RagChange("a", name, **{"most_documents": 9, "most_bytes": 99, **caps})  # type: ignore[arg-type]


def test_a_stamp_is_known_for_as_long_as_its_document(tables: Tables) -> None:
    """It is replaced with it, and forgotten with it."""
    key = FileKey("a", "f/x.md")
    assert rag_files.known(tables) == {}
    rag_files.forget(tables, key)
    assert rag_files.keep(tables, change(key.id), b"old words", "1")
    assert rag_files.keep(tables, change(key.id), b"new words", "2")
    tables.commit()
    assert rag_files.known(tables) == {key: "2"}
    assert [hit.text for hit in (rag_table.search(tables, "a", "words", 9) or [])] == [
        "\nnew words"
    ]
    rag_files.forget(tables, key)
    assert rag_files.known(tables) == {}
    assert rag_table.search(tables, "a", "words", 9) == []


def test_what_is_refused_is_not_remembered(tables: Tables) -> None:
    """It is looked at again when there is room."""
    assert not rag_files.keep(tables, change("f/x.md", most_bytes=3), b"words", "1")
    assert rag_files.known(tables) == {}
