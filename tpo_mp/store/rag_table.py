"""Documents that answers are looked up in: kept whole, and in pieces in a full-text index.

::

    rag_documents   seq, tenant, id (unique per tenant), title, text, size, created_at
    rag_listed      an index of all but the text
    rag_pieces      FTS5: owner (a token of the tenant), text · document, piece (not indexed)

A search ranks pieces by BM25 over the stems of their words; one word of the question is enough to
be found.  The owner is one more word that every piece must have, so the index itself keeps tenants
apart, and what another tenant keeps costs a search nothing.

Invariants: a document and its pieces change in one transaction; a piece is at most ``PIECE_WORDS``
words, and two in a row share ``SHARED_WORDS``; a search takes ``SEARCH_S`` of processor time at
most, for others wait for the same thread.  The tables are made when the first document comes.
Known weakness: how rare a word is counts over all tenants, so scores say a little about them.
"""

from __future__ import annotations

import re
import sqlite3
import time
from hashlib import blake2b
from typing import Any, Final

import msgspec

from .rag_questions import DocumentSums, Hit, RagChange, RagQuestion, change_of, question
from .tables import Tables

PIECE_WORDS: Final = 160
SHARED_WORDS: Final = 30
WORD_CHARS: Final = 64
SEARCH_S: Final = 0.25
MOST_WORDS: Final = 64
FEW_WORDS: Final = 8
_PIECE_WORD: Final = re.compile(rf"\S{{1,{WORD_CHARS}}}")
_WORD: Final = re.compile(r"\w+")
_DOCUMENTS: Final = (
    "CREATE TABLE IF NOT EXISTS rag_documents(seq INTEGER PRIMARY KEY AUTOINCREMENT,"
    " tenant TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL,"
    " size INTEGER NOT NULL, created_at REAL NOT NULL, UNIQUE(tenant, id))"
)
_PIECES: Final = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS rag_pieces USING fts5(owner, text, document UNINDEXED,"
    " piece UNINDEXED, tokenize='porter unicode61 remove_diacritics 2')"
)
_LISTED: Final = (
    "CREATE INDEX IF NOT EXISTS rag_listed ON"
    " rag_documents(tenant, seq, id, title, size, created_at)"
)
"""Lists and sums are read from it alone: a row of the table may be a megabyte long."""
_encode = msgspec.json.Encoder().encode


def answer(tables: Tables, key: str) -> bytes:
    """Answer a question; empty: there is no such document, or the search took too long."""
    asked = question(key)
    if not _made(tables):
        empty: dict[str, Any] = {"page": {"documents": [], "count": 0, "next": None},
                                 "sums": DocumentSums(0, 0, 0)}  # fmt: skip
        return b"" if asked.op == "one" else _encode(empty.get(asked.op, []))
    if asked.op == "search":
        found = search(tables, asked.tenant, asked.text, asked.limit)
        return b"" if found is None else _encode(found)
    if asked.op == "page":
        return _page(tables, asked)
    if asked.op == "one":
        row = tables.read(
            "SELECT id, title, size, created_at, text FROM rag_documents WHERE tenant=? AND id=?",
            (asked.tenant, asked.text),
        ).fetchone()
        return b"" if row is None else _encode(_shown(row) | {"text": row[4]})
    return _encode(_sums(tables, asked.tenant))


def change(tables: Tables, key: str, text: bytes) -> bool:
    """Keep or forget a document; ``False``: it would be too much."""
    wanted = change_of(key)
    if wanted.gone:
        if _made(tables):
            _forget(tables, wanted)
        return True
    tables.write(_DOCUMENTS)
    tables.write(_PIECES)
    tables.write(_LISTED)
    sums = _sums(tables, wanted.tenant)
    old = tables.read(
        "SELECT size FROM rag_documents WHERE tenant=? AND id=?", (wanted.tenant, wanted.id)
    ).fetchone()
    if sums.documents + (old is None) > wanted.most_documents:
        return False
    if sums.all_bytes + len(text) - (old[0] if old else 0) > wanted.most_bytes:
        return False
    _forget(tables, wanted)
    said = text.decode("utf-8", "replace")
    tables.write(
        "INSERT INTO rag_documents(tenant, id, title, text, size, created_at) VALUES(?,?,?,?,?,?)",
        (wanted.tenant, wanted.id, wanted.title, said, len(text), time.time()),
    )
    owner, seq = owner_of(wanted.tenant), _seq(tables, wanted)
    tables.write_many(
        "INSERT INTO rag_pieces(owner, text, document, piece) VALUES(?,?,?,?)",
        [(owner, f"{wanted.title}\n{piece}", seq, n) for n, piece in enumerate(pieces(said))],
    )
    return True


def search(tables: Tables, tenant: str, text: str, limit: int) -> list[Hit] | None:
    """The pieces that fit best, best first; ``None`` when that would take too long.

    When all words take too long, the longest few are tried: they are rarer.
    """
    every = dict.fromkeys(w.lower() for w in _WORD.findall(text) if len(w) > 1)
    words = list(every)[:MOST_WORDS]
    if not words:
        return []
    for some in (words, sorted(words, key=len, reverse=True)[:FEW_WORDS]):
        try:
            with tables.within(SEARCH_S / 2):
                return _search(tables, tenant, some, limit)
        except sqlite3.OperationalError as error:
            if "interrupt" not in str(error):
                raise
    return None


def _search(tables: Tables, tenant: str, words: list[str], limit: int) -> list[Hit]:
    any_of = " OR ".join(f'"{word}"' for word in words)
    rows = tables.read(
        "SELECT d.id, d.title, p.piece, p.score, p.text FROM (SELECT document, piece, text,"
        " bm25(rag_pieces, 0.0, 1.0) AS score FROM rag_pieces WHERE rag_pieces MATCH ?"
        " ORDER BY score LIMIT ?) p JOIN rag_documents d ON d.seq=p.document AND d.tenant=?"
        " ORDER BY p.score",
        (f'owner:"{owner_of(tenant)}" AND text:({any_of})', limit, tenant),
    )
    return [Hit(str(i), str(t), int(n), round(-s, 4), str(x)) for i, t, n, s, x in rows]


def pieces(text: str) -> list[str]:
    """Cut a text at words, and longer ones than ``WORD_CHARS`` anywhere."""
    words = list(_PIECE_WORD.finditer(text))
    step = PIECE_WORDS - SHARED_WORDS
    starts = range(0, max(len(words) - SHARED_WORDS, 1), step)
    return [
        text[words[at].start() : words[min(at + PIECE_WORDS, len(words)) - 1].end()]
        for at in starts
        if words
    ]


def owner_of(tenant: str) -> str:
    """The word that a tenant's pieces have."""
    return "t" + blake2b(tenant.encode(), digest_size=12).hexdigest()


def _made(tables: Tables) -> bool:
    found = tables.read("SELECT 1 FROM sqlite_master WHERE name='rag_pieces'")
    return found.fetchone() is not None


def _seq(tables: Tables, wanted: RagChange) -> int | None:
    row = tables.read(
        "SELECT seq FROM rag_documents WHERE tenant=? AND id=?", (wanted.tenant, wanted.id)
    ).fetchone()
    return None if row is None else int(row[0])


def _forget(tables: Tables, wanted: RagChange) -> None:
    seq = _seq(tables, wanted)
    if seq is not None:
        rows = tables.read(
            "SELECT rowid FROM rag_pieces WHERE rag_pieces MATCH ? AND document=?",
            (f'owner:"{owner_of(wanted.tenant)}"', seq),
        ).fetchall()
        tables.write_many("DELETE FROM rag_pieces WHERE rowid=?", rows)
        tables.write("DELETE FROM rag_documents WHERE seq=?", (seq,))


def _sums(tables: Tables, tenant: str) -> DocumentSums:
    row = tables.read(
        "SELECT COUNT(*) FILTER (WHERE tenant=?1), COALESCE(SUM(size) FILTER (WHERE tenant=?1), 0),"
        " COALESCE(SUM(size), 0) FROM rag_documents",
        (tenant,),
    ).fetchone()
    return DocumentSums(*map(int, row))


def _page(tables: Tables, asked: RagQuestion) -> bytes:
    rows = tables.read(
        "SELECT id, title, size, created_at, seq FROM rag_documents WHERE tenant=? AND seq>?"
        " ORDER BY seq LIMIT ?",
        (asked.tenant, asked.after, asked.limit + 1),
    ).fetchall()
    shown = rows[: asked.limit]
    more = str(shown[-1][4]) if len(rows) > asked.limit else None
    return _encode({"documents": [_shown(r) for r in shown], "count": len(shown), "next": more})


def _shown(row: Any) -> dict[str, Any]:
    return {"id": row[0], "title": row[1], "bytes": row[2], "created_at": row[3]}
