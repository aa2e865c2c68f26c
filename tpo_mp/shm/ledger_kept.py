"""The numbers of the ledger that outlive the host: which changed, and how they come back.

Of a name that begins with ``kept:`` the last byte of its digest is 1, of any other 0; so whoever
knows no names can tell these rows apart.  They are read without a lock, whole or not at all (see
``rows``), and written under the lock of their set, as the ledger does.

Invariants: one process reads, and remembers what it read; a row that could not be read is read
next time; what comes back is joined with what is there already, once.
Known weakness: numbers that changed since the last look are forgotten with the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from tpo_mp.ports import Cells

from .ledger import NAMED_SHARE, SET_ROWS, SharedLedger
from .ledger_watch import DIGEST_BYTES, PAYLOAD
from .rows import HEADER, ROW_BYTES, RowTable

_CHUNK = 128 * ROW_BYTES
_DIGEST_AT = 8


class KeptRow(NamedTuple):
    """One name's numbers; ``crowd`` says in which part of the ledger it belongs."""

    digest: bytes
    crowd: bool
    cells: Cells


class KeptRows:
    """Looks for what changed among the rows that are kept."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._seen = bytes(table.rows * ROW_BYTES)
        sets = table.rows // SET_ROWS - 1
        self._crowd_from = (1 + sets // NAMED_SHARE) * SET_ROWS

    def changed(self) -> list[KeptRow]:
        """Every kept row that is not as it was at the last look."""
        found: list[KeptRow] = []
        parts: list[bytes] = []
        for at in range(0, len(self._seen), _CHUNK):
            before = self._seen[at : at + _CHUNK]
            now = self._table.map[HEADER + at : HEADER + at + len(before)]
            if now != before:
                now = self._rows(at // ROW_BYTES, before, now, found)
            parts.append(now)
        self._seen = b"".join(parts)
        return found

    def _rows(self, first: int, before: bytes, now: bytes, found: list[KeptRow]) -> bytes:
        """Note the changed rows of one piece; answers the piece as it counts as seen."""
        seen = bytearray(now)
        for at in range(0, len(now), ROW_BYTES):
            row = now[at : at + ROW_BYTES]
            if not _is_kept(row[_DIGEST_AT:]) or row == before[at : at + ROW_BYTES]:
                continue
            number = first + at // ROW_BYTES
            payload = self._table.read(number)
            if payload is None:  # being written just now
                seen[at : at + ROW_BYTES] = before[at : at + ROW_BYTES]
                continue
            if _is_kept(payload):
                digest, _, a, b, c, d, _ = PAYLOAD.unpack(payload)
                found.append(KeptRow(digest, number >= self._crowd_from, (a, b, c, d)))
        return bytes(seen)

    def forget(self) -> None:
        """Take every row for changed."""
        self._seen = bytes(len(self._seen))


def restore(
    ledger: SharedLedger, rows: Iterable[KeptRow], join: Callable[[Cells, Cells], Cells]
) -> int:
    """Put rows back, joined with what is there: ``join(there, kept)``; answers how many.

    Raises ``Shed`` when another process was stopped in the middle of the same row.
    """
    count = 0
    for digest, crowd, cells in rows:
        ledger.change(digest, partial(_joined, join, cells), crowd=crowd)
        count += 1
    return count


def _is_kept(payload: bytes) -> bool:
    return payload[DIGEST_BYTES - 1] == 1


def _joined(join: Callable[[Cells, Cells], Cells], kept: Cells, there: Cells) -> Cells:
    return join(there, kept)
