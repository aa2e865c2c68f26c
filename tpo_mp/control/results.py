"""Records of calls that are fetched later, findable by session and by how they stand.

Invariants: a page holds at most ``PAGE_BYTES`` of records, and at least one, so that a page of long
answers cannot fill memory; records are sent on as the workers wrote them.
"""

from __future__ import annotations

import sqlite3

import msgspec
from msgspec import Struct

from tpo_mp.store.questions import RESULTS, RecordQuery
from tpo_mp.store.shelf import Shelf

PAGE_BYTES = 4 << 20


class _Head(Struct):
    status: str = ""
    session_id: str | None = None


_head = msgspec.json.Decoder(_Head).decode


def keep(shelf: Shelf, call_id: str, record: bytes, ttl_s: float) -> bool:
    """Stage a record; false when a cap or a broken database forbids it."""
    try:
        head = _head(record)
    except msgspec.MsgspecError:
        head = _Head()
    label = head.session_id or ""
    return shelf.put(RESULTS, call_id, record, ttl_s, label=label, state=head.status)


def page(shelf: Shelf, query: RecordQuery) -> bytes | None:
    """JSON ``{results, count, next}``, newest word first; ``None`` when it cannot be read."""
    records: list[bytes] = []
    size, last = 0, 0
    following = False
    try:
        for row, record in shelf.labelled(
            RESULTS,
            query.limit + 1,
            before=query.after,
            label=query.session,
            state=query.state,
            ending=query.mark,
        ):
            if len(records) == query.limit or (records and size + len(record) > PAGE_BYTES):
                following = True
                break
            records.append(record)
            size += len(record)
            last = row
    except sqlite3.Error:
        return None
    after = b'"%d"' % last if following else b"null"
    return b'{"results":[%b],"count":%d,"next":%b}' % (b",".join(records), len(records), after)
