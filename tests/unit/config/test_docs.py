"""The settings page is what the program does, and every setting has its sentence."""

from __future__ import annotations

import re
from pathlib import Path

from tpo_mp.config.docs import render

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_page_is_up_to_date() -> None:
    """`scripts/docs` writes it."""
    assert PAGE.read_text() == render(), "run scripts/docs"


def test_every_setting_has_a_sentence() -> None:
    """A key without one is not documented."""
    rows = [re.split(r"(?<!\\) ?\| ?", line) for line in render().splitlines()]
    settings = {row[1]: row[5] for row in rows if len(row) == 7 and row[1].startswith("`")}
    assert "`port`" in settings
    assert [key for key, meaning in settings.items() if not meaning.endswith(".")] == []


def test_page_is_the_same_twice() -> None:
    """Nothing in it depends on the run."""
    assert render() == render()
