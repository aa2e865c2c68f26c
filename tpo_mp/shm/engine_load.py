"""What an engine's own metrics say of its load, as control read them lately.

One row of the ledger for each backend whose metrics are read::

    engine-load:BACKEND  cells 0  others   requests it has that no process of this host sent
                           1  waiting  requests it has no room for yet
                           2  kv       share of its KV cache in use; -1: it does not say
                           3  until    CLOCK_MONOTONIC, until when this counts

and, for a server that says how many slots it has::

    engine-slots:BACKEND cells 0  slots    how many there are; -1: what an idle one holds is lost
                           3  until    as above

Control writes them, anybody reads them.  A row not renewed counts for nothing, and routes go
by their own counts again, which are exact: what is read of an engine is as old as the last look.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tpo_mp.ports import Cells

NONE_KEPT: Final = -1
"""Instead of a number of slots: an idle one is emptied when another begins."""


class EngineLoad(NamedTuple):
    """One row in words."""

    others: float
    waiting: float
    kv: float | None


def load_row(backend: str) -> str:
    """Its name in the ledger."""
    return f"engine-load:{backend}"


def engine_cells(load: EngineLoad, until: float) -> Cells:
    """Write it."""
    return (load.others, load.waiting, -1.0 if load.kv is None else load.kv, until)


def slots_row(backend: str) -> str:
    """The name of the row about its slots."""
    return f"engine-slots:{backend}"


def slots_cells(slots: int, until: float) -> Cells:
    """Write that."""
    return (float(slots), 0.0, 0.0, until)


def read_slots(cells: Cells, now: float) -> int:
    """Read that, or ``NONE_KEPT``; 0: it is not known, or not lately."""
    return int(cells[0]) if now <= cells[3] else 0


def read_engine(cells: Cells, now: float) -> EngineLoad | None:
    """Read it; ``None``: nothing is known, or not lately."""
    if now > cells[3]:
        return None
    return EngineLoad(cells[0], cells[1], None if cells[2] < 0 else cells[2])
