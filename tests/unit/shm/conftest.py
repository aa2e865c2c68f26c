"""Fixtures of the shared memory tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tpo_mp.shm.rows import RowTable


@pytest.fixture
def table() -> Iterator[RowTable]:
    """A table of a few rows, whose locks other structures use."""
    made = RowTable.create(8)
    yield made
    made.close()
