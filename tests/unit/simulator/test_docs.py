"""The table of presets in the simulator's page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.simulator.docs import rewrite

PAGE = Path(__file__).parents[3] / "docs" / "simulator.md"


def test_page_is_up_to_date() -> None:
    """As ``scripts/docs`` writes it."""
    assert rewrite(PAGE.read_text()) == PAGE.read_text()


def test_page_without_a_place_is_refused() -> None:
    """Nothing is put anywhere else."""
    with pytest.raises(ValueError, match="no place"):
        rewrite("# Another page")
