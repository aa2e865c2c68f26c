"""The page of prices is the table."""

from __future__ import annotations

from pathlib import Path

from tpo_mp.config.prices import TABLE
from tpo_mp.config.prices_docs import render

PAGE = Path(__file__).parents[3] / "docs" / "prices.md"


def test_page_is_up_to_date() -> None:
    """`scripts/docs` writes it."""
    assert PAGE.read_text() == render(), "run scripts/docs"
    assert render().count("| https://") == len(TABLE)
