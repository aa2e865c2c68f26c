"""Documents in the database: found by their words, by their own tenant alone, within the caps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tpo_mp.store import rag_table
from tpo_mp.store import tables as tables_module
from tpo_mp.store.rag_questions import RagChange, RagQuestion
from tpo_mp.store.tables import TableCaps, Tables


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    """A new database."""
    made = Tables(tmp_path / "store.db", TableCaps())
    yield made
    made.close()


def keep(tables: Tables, id: str, text: str, tenant: str = "a", **caps: int) -> bool:
    """Keep a document."""
    caps = {"most_documents": 100, "most_bytes": 1 << 20} | caps
    return rag_table.change(tables, RagChange(tenant, id, f"About {id}", **caps).key(),
                            text.encode())  # fmt: skip


def ask(tables: Tables, op: Any, text: str = "", tenant: str = "a", **more: int) -> Any:
    """What is answered."""
    told = rag_table.answer(tables, RagQuestion(op, tenant, text, **more).key())
    return orjson.loads(told) if told else None


def found(tables: Tables, text: str, tenant: str = "a") -> list[str]:
    """The ids of what is found, best first."""
    return [hit["id"] for hit in ask(tables, "search", text, tenant)]


def test_what_fits_best_is_found_first(tables: Tables) -> None:
    """By stems and rare words; what has none of the words is not found."""
    keep(tables, "cats", "Cats sleep most of the day. A cat hunts at night.")
    keep(tables, "dogs", "Dogs bark at night and sleep as well.")
    keep(tables, "sea", "The tide follows the moon.")
    assert found(tables, "when does my cat hunt?") == ["cats"]
    assert found(tables, "who is sleeping?") == ["dogs", "cats"] or found(
        tables, "who is sleeping?"
    ) == ["cats", "dogs"]
    assert found(tables, "quantum") == []
    best = ask(tables, "search", "moon tides")[0]
    assert best["score"] > 0
    assert best["text"] == "About sea\nThe tide follows the moon."


@pytest.mark.parametrize(
    "text", ["", '" OR 1', "owner:x", "NEAR(", "a b c", "*", "日本", "x" * 9000]
)
def test_any_question_is_only_words(tables: Tables, text: str) -> None:
    """The syntax of the index is not the client's."""
    keep(tables, "d", "nothing of that")
    assert ask(tables, "search", text) == []


def test_no_tenant_finds_or_changes_anothers(tables: Tables) -> None:
    """Nor by knowing its words: same ids are different documents."""
    keep(tables, "secret", "the plan of bluebird", "a")
    keep(tables, "secret", "the plan of redbird", "b")
    owner = rag_table.owner_of("a")
    assert ask(tables, "search", f"bluebird {owner} owner", "b") == []
    assert ask(tables, "search", "plan", "b")[0]["text"].endswith("redbird")
    assert ask(tables, "page", tenant="c") == {"documents": [], "count": 0, "next": None}
    rag_table.change(tables, RagChange("b", "secret", gone=True).key(), b"")
    assert ask(tables, "one", "secret", "b") is None
    assert found(tables, "bluebird") == ["secret"]


def test_a_document_is_replaced_and_goes_as_a_whole(tables: Tables) -> None:
    """No piece of what was is left in the index."""
    long = " ".join(f"word{i}" for i in range(1000))
    keep(tables, "d", long)
    assert {hit["piece"] for hit in ask(tables, "search", "word5 word500 word999")} == {0, 3, 7}
    keep(tables, "d", "short now")
    assert found(tables, "word500") == []
    assert found(tables, "short") == ["d"]
    assert ask(tables, "one", "d")["text"] == "short now"
    rag_table.change(tables, RagChange("a", "d", gone=True).key(), b"")
    assert ask(tables, "sums") == {"documents": 0, "bytes": 0, "all_bytes": 0}
    assert found(tables, "short") == []


def test_pieces_cover_every_word_and_overlap() -> None:
    """So that a sentence at a cut is whole in one of two."""
    words = [f"w{i}" for i in range(411)]
    cut = [piece.split() for piece in rag_table.pieces("  \n".join(words))]
    assert [piece[0] for piece in cut] == ["w0", "w130", "w260"]
    assert cut[-1][-1] == "w410"
    assert all(len(piece) <= rag_table.PIECE_WORDS for piece in cut)
    assert rag_table.pieces("") == []


def test_caps_refuse_and_keep_what_is_there(tables: Tables) -> None:
    """Documents of a tenant, bytes of all; a replacement counts once."""
    assert keep(tables, "one", "x" * 60, most_documents=1)
    assert not keep(tables, "two", "y", most_documents=1)
    assert keep(tables, "one", "z" * 90, most_documents=1, most_bytes=100)
    assert not keep(tables, "other", "y" * 11, "b", most_bytes=100)
    assert ask(tables, "sums") == {"documents": 1, "bytes": 90, "all_bytes": 90}


def test_a_page_continues(tables: Tables) -> None:
    """In the order in which they came; before any came there is an empty one."""
    assert ask(tables, "page", limit=2)["documents"] == []
    assert ask(tables, "search", "x") == []
    for name in "abc":
        keep(tables, name, "text")
    page = ask(tables, "page", limit=2)
    assert [d["id"] for d in page["documents"]] == ["a", "b"]
    rest = ask(tables, "page", limit=2, after=int(page["next"]))
    assert ([d["id"] for d in rest["documents"]], rest["next"]) == (["c"], None)


def test_a_search_that_takes_too_long_is_given_up(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing, loses nothing that is staged, and the next one is as before."""
    keep(tables, "d", "the tide follows the moon " * 200)
    monkeypatch.setattr(tables_module, "STEPS", 1)
    monkeypatch.setattr(rag_table, "SEARCH_S", -1.0)
    assert ask(tables, "search", "moon") is None
    monkeypatch.undo()
    tables.commit()
    assert found(tables, "moon")[0] == "d"


def test_the_longest_words_are_tried_when_all_take_too_long(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a question full of common words finds something."""
    keep(tables, "d", "the lighthouse")
    looked: list[list[str]] = []
    search = rag_table._search

    def slow(tables: Tables, tenant: str, words: list[str], limit: int) -> Any:
        looked.append(words)
        if len(words) > rag_table.FEW_WORDS:
            raise sqlite3.OperationalError("interrupted")
        return search(tables, tenant, words, limit)

    monkeypatch.setattr(rag_table, "_search", slow)
    assert found(tables, "is it to be or at on by up as lighthouse") == ["d"]
    assert [len(words) for words in looked] == [11, 8]
    assert looked[1][0] == "lighthouse"


def test_lists_and_sums_do_not_read_texts(tables: Tables) -> None:
    """A row may be a megabyte long."""
    keep(tables, "d", "text")
    listed = (
        "SELECT id, title, size, created_at, seq FROM rag_documents WHERE tenant=? AND seq>?"
        " ORDER BY seq LIMIT ?"
    )
    summed = "SELECT COUNT(*), SUM(size) FROM rag_documents"
    for sql, given in ((listed, ("a", 0, 9)), (summed, ())):
        (plan,) = tables.read(f"EXPLAIN QUERY PLAN {sql}", given).fetchall()
        assert "COVERING INDEX rag_listed" in plan[3]


def test_a_text_without_spaces_is_cut_as_well() -> None:
    """No piece is as long as the document."""
    cut = rag_table.pieces("x" * 100_000)
    assert max(map(len, cut)) == rag_table.PIECE_WORDS * rag_table.WORD_CHARS
    assert len("".join(cut)) >= 100_000
