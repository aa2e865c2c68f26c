"""The routes that metrics and the journal name."""

from __future__ import annotations

from tpo_mp.simulator.endpoints import PATHS
from tpo_mp.types import Dialect


def test_every_dialect_has_one() -> None:
    """Another one each."""
    assert set(PATHS) == set(Dialect)
    assert len(set(PATHS.values())) == len(PATHS)
