"""Counts that outlive the host, in the database: the newest numbers of each kept row.

::

    counts   digest -> crowd (0, 1), four numbers, written_at

Invariants: one row per digest; at most ``MOST`` rows and none older than ``AGE_S``, the ones not
written for longest go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from .tables import Tables

MOST: Final = 50_000
AGE_S: Final = 400 * 86400.0
"""More than a year, so that no period is forgotten before it is over."""

Count: TypeAlias = tuple[bytes, bool, tuple[float, float, float, float]]
"""Digest, whether it is of the crowd, numbers."""


class CountTable:
    """The kept counts; every method may raise ``sqlite3.Error``."""

    def __init__(self, tables: Tables, clock: Callable[[], float] = time.time) -> None:
        self._tables = tables
        self._clock = clock

    def keep(self, rows: Iterable[Sequence[Any]]) -> None:
        """Stage the newest numbers of some rows: (digest, crowd, numbers) each."""
        now = self._clock()
        self._tables.write_many(
            "INSERT OR REPLACE INTO counts VALUES(?,?,?,?,?,?,?)",
            [(digest, int(crowd), *numbers, now) for digest, crowd, numbers in rows],
        )

    def kept(self) -> list[Count]:
        """Every row, the one written last at the end."""
        rows = self._tables.read(
            "SELECT digest, crowd, a, b, c, d FROM counts ORDER BY written_at, digest"
        )
        return [(bytes(row[0]), bool(row[1]), (row[2], row[3], row[4], row[5])) for row in rows]

    def tidy(self) -> int:
        """Forget what is too old or too much; answers how many rows."""
        aged = self._tables.write(
            "DELETE FROM counts WHERE written_at < ?", (self._clock() - AGE_S,)
        ).rowcount
        beyond = self._tables.write(
            "DELETE FROM counts WHERE digest IN (SELECT digest FROM counts"
            " ORDER BY written_at DESC, digest LIMIT -1 OFFSET ?)",
            (MOST,),
        ).rowcount
        return aged + beyond
