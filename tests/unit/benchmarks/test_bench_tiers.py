"""The measurement of lookups in Redis runs against a real one."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from benchmarks import tiers
from tests.conftest import require


@pytest.mark.parametrize("state", tiers.STATES)
def test_a_row_tells_how_long_lookups_took(state: str) -> None:
    """A Redis that is well is asked each time, a dead one hardly."""
    require(shutil.which("redis-server"), "redis-server")
    row = asyncio.run(tiers.measure(state, 40))
    assert row["lookups"] == 40
    assert row["p50_ms"] <= row["p99_ms"]
    assert row["asked"] > 0 if state == "well" else row["asked"] < 30
