"""Numbers by name that all processes of a host share: the rows of ``rows``, found by a hash.

::

    table    set 0        rows 0-7     locks of ``live`` (row 0) and ``journal`` (row 1)
             sets 1-N     8 rows each  row 0 of a set is its lock only, rows 1-7 hold names
    sets     1 .. N/4     names that the operator's configuration is made of
             the others   the crowd: names that come from clients
    payload  0   digest   12 bytes   blake2b of the name; zeros: nobody's
             12  used_at  f64        CLOCK_MONOTONIC of the last update
             20  cells    4 x f64    the name's numbers, zeros at first
             52  crc32    u32        of the 52 bytes before

The digest names the set; whoever holds the lock of the set's first row may read and write all its
rows, so one lock is one update.  A name that is not there takes the place of the name of its set
that was not used for longest (an unused one first), and that other name begins again at zeros when
it is used next: that is what happens at the cap, and ``tpo_ledger_replaced_total`` counts it.
The crowd can only push out the crowd.

What the next holder sees if the writer dies between any two lines: the row as it was, the row as
it became, or a row marked torn (see ``rows``).  Of a torn row the payload's own CRC decides: old
and new bytes are kept as they are, so a count is exact, or one more for the update that nobody was
answered; bytes that are neither are zeroed.

Memory order: none is relied on; rows are written by holders of the lock only, and read by them or
as ``ledger_watch`` says.

Invariants: an update is whole and happens once; who cannot have the lock within ``PATIENCE_NS`` is
told so (``Shed``), because an exact count has no conservative answer but "come back".
Known weakness: that wait blocks the loop.  It is microseconds but for a holder that the kernel took
off its core in the middle; after one that was waited for in vain (a stopped process) a set is
tried for 200 us only, until it answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from zlib import crc32

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Metrics

from .ledger_watch import PAYLOAD, LedgerWatch, digest_of
from .rows import BLANK, HEADER, LOCK_WAIT_NS, ROW_BYTES, RowTable

LEDGER_ROWS = 16_384
"""Rows of a host's ledger."""
SET_ROWS = 8
PLACES = SET_ROWS - 1
NAMED_SHARE = 4
"""One set in so many is for configured names."""
PATIENCE_NS = 40_000_000
"""A call that waits for a stopped holder is answered within 50 ms."""
LEAST_ROWS = 8 * SET_ROWS

_SUM_AT = PAYLOAD.size - 4
_ODD_BITS = int.from_bytes(b"\x01" * PLACES, "little")


class SharedLedger:
    """The ``Ledger`` of one process; all processes of a host see the same numbers."""

    def __init__(
        self, table: RowTable, metrics: Metrics, *, patience_ns: int = PATIENCE_NS
    ) -> None:
        if table.rows < LEAST_ROWS or table.rows % SET_ROWS:
            raise ValueError(f"a ledger of {table.rows} rows")
        sets = table.rows // SET_ROWS - 1
        self._table = table
        self._patience_ns = patience_ns
        self._named = sets // NAMED_SHARE
        self._crowd = sets - self._named
        self._stuck: set[int] = set()
        self._replaced = metrics.counter(
            "tpo_ledger_replaced_total", "Shared numbers forgotten to make room for others."
        )
        self._refused = metrics.counter(
            "tpo_ledger_refused_total", "Updates of shared numbers given up: another held them."
        )
        self._mended = metrics.counter(
            "tpo_ledger_mended_total", "Shared numbers that a dead process left half written."
        )

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Count one more ``name``; see ``ports.Ledger``."""
        return int(self.update(name, _one_more, crowd=crowd)[0])

    def update(self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False) -> Cells:
        """Change a name's numbers; see ``ports.Ledger``."""
        return self._change(digest_of(name), change, crowd)[1]

    def look(self, name: str, *, crowd: bool = False) -> Cells:
        """Read a name's numbers without a lock; see ``ports.Ledger``.

        A row that is torn, or written all the while, reads as zeros.
        """
        digest = digest_of(name)
        return _look(self._table, self._head(digest, crowd) + 1, digest)

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> LedgerWatch:
        """Look at names without a lock; see ``ports.Ledger``."""
        ours = len(names)

        def find(place: int, name: str) -> int:
            return self._change(digest_of(name), _same, place >= ours)[0]

        return LedgerWatch(self._table, (*names, *crowd), find)

    def _change(
        self, digest: bytes, change: Callable[[Cells], Cells], crowd: bool
    ) -> tuple[int, Cells]:
        """Change a name's numbers; answers its row too."""
        head = self._head(digest, crowd)
        patience = LOCK_WAIT_NS if head in self._stuck else self._patience_ns
        with self._table.lock(head, wait_ns=patience) as held:
            if held is None:
                self._stuck.add(head)
                self._refused.inc()
                raise Shed(
                    "a worker that does not run holds this count",
                    reason="ledger_busy",
                    retry_after_s=1,
                )
            if self._stuck:
                self._stuck.discard(head)
            row, cells = self._find(head, digest)
            after = change(cells)
            self._table.under(row).write(_pack(digest, monotonic(), after))
        return row, after

    def _head(self, digest: bytes, crowd: bool) -> int:
        """The first row of a name's set."""
        number = int.from_bytes(digest[:8], "little")
        place = self._named + number % self._crowd if crowd else number % self._named
        return (1 + place) * SET_ROWS

    def _find(self, head: int, digest: bytes) -> tuple[int, Cells]:
        """The row of a name, or the one it takes; the set's lock is held."""
        table = self._table
        first = head + 1
        at = HEADER + first * ROW_BYTES
        rows = table.map[at : at + PLACES * ROW_BYTES]
        if int.from_bytes(rows[::ROW_BYTES], "little") & _ODD_BITS:
            self._mend(first)
            rows = table.map[at : at + PLACES * ROW_BYTES]
        found = rows.find(digest)
        if found >= 0 and found % ROW_BYTES == 8:
            cells = PAYLOAD.unpack_from(rows, found)
            return first + found // ROW_BYTES, cells[2:6]
        used = [
            PAYLOAD.unpack_from(rows, place * ROW_BYTES + 8)[1] for place in range(PLACES)
        ]  # a place never used says 0
        place = used.index(min(used))
        if used[place]:
            self._replaced.inc()
        return first + place, (0.0, 0.0, 0.0, 0.0)

    def _mend(self, first: int) -> None:
        for row in range(first, first + PLACES):
            held = self._table.under(row)
            held.mend(_whole_or_blank)
            if held.repaired:
                self._mended.inc()


def look_at(table: RowTable, name: str) -> Cells:
    """What ``SharedLedger.look`` answers, for who keeps no numbers of its own."""
    digest = digest_of(name)
    named = (table.rows // SET_ROWS - 1) // NAMED_SHARE
    place = int.from_bytes(digest[:8], "little") % named
    return _look(table, (1 + place) * SET_ROWS + 1, digest)


def _look(table: RowTable, first: int, digest: bytes) -> Cells:
    for row in range(first, first + PLACES):
        payload = table.read(row)
        if payload is not None and payload.startswith(digest):
            return PAYLOAD.unpack(payload)[2:6]
    return (0.0, 0.0, 0.0, 0.0)


def _same(cells: Cells) -> Cells:
    return cells


def _one_more(cells: Cells) -> Cells:
    return (cells[0] + 1, cells[1], cells[2], cells[3])


def _pack(digest: bytes, used_at: float, cells: Cells) -> bytes:
    payload = PAYLOAD.pack(digest, used_at, *cells, 0)[:_SUM_AT]
    return payload + crc32(payload).to_bytes(4, "little")


def _whole_or_blank(torn: bytes) -> bytes:
    """The repair rule: the payload as it was or became, if it is one of these."""
    return torn if crc32(torn[:_SUM_AT]) == int.from_bytes(torn[_SUM_AT:], "little") else BLANK
