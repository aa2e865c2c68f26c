"""What is kept in the ledger by a backend's name has a row of its own for each kind of fact."""

from __future__ import annotations

from tpo_mp.shm.engine_load import load_row
from tpo_mp.shm.engine_rows import engine_row
from tpo_mp.shm.standing import drain_row, health_row


def test_an_engine_is_the_backend_of_its_name_and_shares_no_row_with_it() -> None:
    """Its state by the supervisor, its load and health by control, its draining by workers."""
    rows = [make("one") for make in (engine_row, load_row, health_row, drain_row)]
    assert len(set(rows)) == len(rows), rows
