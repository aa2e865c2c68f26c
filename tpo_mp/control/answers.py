"""Answers to the workers' questions, computed on the store's thread.

Shapes of the dead-letter answers are those of ``GET /api/v1/dlq`` and ``GET /api/v1/dlq/{id}``, so
that a worker sends them on as they are.  Ordinary tables answer the bytes that were put.
"""

from __future__ import annotations

import base64
import sqlite3
import time
from typing import Any

import orjson

from tpo_mp.store import rag_table, replay_table
from tpo_mp.store.audit_questions import AUDIT_STATS, AuditQuery
from tpo_mp.store.letters import Letter
from tpo_mp.store.questions import (
    LETTERS,
    RESULTS,
    STATUSES,
    LetterQuery,
    RecordQuery,
)
from tpo_mp.store.rag_questions import RAG
from tpo_mp.store.shelf import Shelf
from tpo_mp.store.tables import LetterHeader

from . import job_work, results
from .audit import AuditReader

UNAVAILABLE = (False, None)


def get(shelf: Shelf, table: str, key: str) -> tuple[bool, bytes | None]:
    """Whether the store could answer, and what it has."""
    if table == RAG:
        found = shelf.with_tables(lambda t: rag_table.answer(t, key))
        return found is not None, found or None
    if table == RESULTS:
        wanted = RecordQuery.from_key(key)
        if wanted is not None:
            return True, results.page(shelf, wanted)
        ok, found = shelf.get(table, key)
        if ok and found is None:  # a prompt of a batch has its record with its job
            found = shelf.with_jobs(lambda jobs: job_work.record_of(jobs, key))
        return ok, found
    if table != LETTERS:
        return shelf.get(table, key)
    query = LetterQuery.from_key(key)
    try:
        return True, _one(shelf, key) if query is None else _page(shelf, query)
    except sqlite3.Error:
        return UNAVAILABLE


def audit(reader: AuditReader, shelf: Shelf, table: str, key: str) -> tuple[bool, bytes | None]:
    """A page of the call records, or their sums."""
    query = AuditQuery.from_key(key)
    if query is None:
        return UNAVAILABLE
    made = reader.stats if table == AUDIT_STATS else reader.page
    return True, made(shelf, query)


def put(shelf: Shelf, table: str, key: str, value: bytes, ttl_s: float) -> bool:
    """Stage a value, or a letter's new status."""
    if table == RAG:
        return bool(shelf.with_tables(lambda t: rag_table.change(t, key, value)))
    if table == RESULTS:
        return results.keep(shelf, key, value, ttl_s)
    if table != LETTERS:
        return shelf.put(table, key, value, ttl_s)
    status = value.decode("utf-8", "replace")
    if status not in STATUSES:
        return False
    try:
        shelf.with_tables(lambda t: replay_table.ended(t, key))
        return shelf.letters.set_status(key, status, time.time())
    except sqlite3.Error:
        return False


def _page(shelf: Shelf, query: LetterQuery) -> bytes:
    if query.oldest:
        found = shelf.letters.oldest(query.limit, query.session, query.since)
    else:
        found = shelf.letters.page(query.limit + 1, query.after, query.tenant)
    page = found[: query.limit]
    last = page[-1].seq if page else 0
    body = {
        "entries": [_entry(header) for header in page],
        "count": len(page),
        "total": shelf.letters.depth(),
        "next": str(last) if len(found) > query.limit and last else None,
    }
    return orjson.dumps(body)


def _one(shelf: Shelf, call_id: str) -> bytes | None:
    found = shelf.letters.read(call_id)
    if found is None:
        return None
    header, letter = found
    tried = shelf.with_tables(lambda t: replay_table.of(t, call_id)) or replay_table.Attempts()
    body = _entry(header) | {
        "status": header.status,
        "model": header.model,
        "path": header.path,
        "truncated": letter is not None and letter.truncated,
        "redacted": letter is not None and letter.redacted,
        "locked": letter is None,
        "bytes_sent": letter.bytes_sent if letter is not None and letter.bytes_sent >= 0 else None,
        "attempts": tried.attempts,
        "repeated": tried.repeated,
    }
    return orjson.dumps(body | ({"payload": None} if letter is None else _payload(letter)))


def _entry(header: LetterHeader) -> dict[str, Any]:
    return {
        "request_id": header.call_id,
        "client_request_id": header.client_request_id or None,
        "session_id": header.session or None,
        "reason": header.reason,
        "dropped_at": header.dropped_at,
        "tenant": header.tenant,
    }


def _payload(letter: Letter) -> dict[str, Any]:
    """The body as JSON where it is JSON, else as text, else base64."""
    body = letter.body
    try:
        return {"payload": orjson.loads(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"payload": body.decode(), "encoding": "text"}
    except UnicodeDecodeError:
        return {"payload": base64.b64encode(body).decode(), "encoding": "base64"}
