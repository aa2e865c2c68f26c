"""Which documents came from files, and as which state of them.

::

    rag_files     tenant, id (together unique) -> stamp of the file that the document was read from

The documents are ordinary ones of ``rag_table``; their ids have a slash, which no client's has.

Invariants: a stamp changes in one transaction with its document, so what was read once is not read
again by a later process.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from . import rag_table
from .rag_questions import RagChange
from .tables import Tables

_FILES: Final = (
    "CREATE TABLE IF NOT EXISTS rag_files(tenant TEXT NOT NULL, id TEXT NOT NULL,"
    " stamp TEXT NOT NULL, PRIMARY KEY(tenant, id)) WITHOUT ROWID"
)


class FileKey(NamedTuple):
    """Whose document it is, and its id."""

    tenant: str
    id: str


def known(tables: Tables) -> dict[FileKey, str]:
    """The stamps of all files that documents came from."""
    if not _made(tables):
        return {}
    rows = tables.read("SELECT tenant, id, stamp FROM rag_files")
    return {FileKey(str(tenant), str(name)): str(stamp) for tenant, name, stamp in rows}


def keep(tables: Tables, change: RagChange, text: bytes, stamp: str) -> bool:
    """Keep a file's text in the place of what it was; ``False``: it would be too much."""
    if not rag_table.change(tables, change.key(), text):
        return False
    tables.write(_FILES)
    tables.write(
        "INSERT OR REPLACE INTO rag_files VALUES(?,?,?)", (change.tenant, change.id, stamp)
    )
    return True


def forget(tables: Tables, file: FileKey) -> None:
    """The file is there no more."""
    rag_table.change(tables, RagChange(file.tenant, file.id, gone=True).key(), b"")
    if _made(tables):
        tables.write("DELETE FROM rag_files WHERE tenant=? AND id=?", file)


def _made(tables: Tables) -> bool:
    found = tables.read("SELECT 1 FROM sqlite_master WHERE name='rag_files'")
    return found.fetchone() is not None
