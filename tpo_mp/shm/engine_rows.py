"""How each engine of the host is, as the supervisor that keeps it says.

One row of the ledger for each engine::

    engine:NAME    cells 0  state     a place in ``ENGINE_STATES``; written by the supervisor only
                         1  restarts  since the host started
                         2, 3         zeros

The supervisor writes when something changes, and now and then anyway.  A row that is not there
reads as ``unknown``.  What readers see if a writer dies in the middle is the ledger's affair; a
host without its supervisor ends.

Invariants: these functions are pure.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.ports import Cells

ENGINE_STATES: Final = (
    "unknown", "down", "loading", "ready", "stopping", "backing off", "failed",
)  # fmt: skip


def engine_row(engine: str) -> str:
    """The name of an engine's row."""
    return f"engine:{engine}"


def engine_cells(state: str, restarts: int) -> Cells:
    """Write how it is."""
    return (float(ENGINE_STATES.index(state)), float(restarts), 0.0, 0.0)


def read_engine(cells: Cells) -> tuple[int, int]:
    """State, as its place, and restarts."""
    state = int(cells[0])
    return (state if 0 <= state < len(ENGINE_STATES) else 0), int(cells[1])
