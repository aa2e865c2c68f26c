"""Tells every process of the host how the engines are; see ``shm.engine_rows``.

Invariants: what did not change is written every ``RENEW_S`` only; a row that a stopped process
holds is left for the next turn.
"""

from __future__ import annotations

import contextlib
from typing import Any

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells
from tpo_mp.services import Metrics
from tpo_mp.shm.engine_rows import engine_cells, engine_row
from tpo_mp.shm.ledger import SharedLedger
from tpo_mp.shm.rows import LOCK_WAIT_NS, RowTable

from .engines import EngineHouse

RENEW_S = 5.0


class _Uncounted:
    """A series nobody scrapes: the supervisor has no seat."""

    def inc(self, n: int = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def add(self, n: float) -> None: ...
    def observe(self, value: float) -> None: ...


class _Unmetered:
    """Makes such series."""

    def counter(self, *_: Any, **_labels: Any) -> _Uncounted:
        return _Uncounted()

    money = gauge = histogram = counter


class EngineBoard:
    """Writes the rows of the engines."""

    def __init__(self, table: RowTable) -> None:
        unmetered: Metrics = _Unmetered()
        self._ledger = SharedLedger(table, unmetered, patience_ns=LOCK_WAIT_NS)
        self._told: dict[str, tuple[Cells, float]] = {}

    def tell(self, engines: EngineHouse, now: float) -> None:
        """Write what is new."""
        for name in self._told.keys() - engines.berths.keys():
            del self._told[name]
        for name, berth in engines.berths.items():
            cells = engine_cells(berth.state, berth.restarts)
            told, at = self._told.get(name, (None, 0.0))
            if told == cells and now < at + RENEW_S:
                continue
            with contextlib.suppress(Shed):
                self._ledger.update(engine_row(name), lambda _, new=cells: new)  # type: ignore[misc]
                self._told[name] = cells, now
