"""Presets: figures with their grounds."""

from __future__ import annotations

import pytest

from tpo_mp.simulator.presets import PRESETS, rows
from tpo_mp.simulator.spreads import Wobble


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_where_its_figures_come_from(name: str) -> None:
    """A source and a date, unless they are assumed; a name says when, or that it is a design."""
    preset = PRESETS[name]
    assert preset.grounds
    for ground in preset.grounds:
        assert bool(ground.source) == bool(ground.date) == (ground.label != "assumed")
    if {ground.label for ground in preset.grounds} & {"measured", "published"}:
        assert name.partition("@")[2] in {ground.date[:4] for ground in preset.grounds}
    if name.endswith("@design"):
        assert {ground.label for ground in preset.grounds} == {"design"}


def test_figures_are_those_of_the_sources() -> None:
    """First token and gap, as published."""
    turbo = PRESETS["gpt-4-turbo@design"].profile
    assert turbo.first_token_ms.quantile(0.5) == pytest.approx(800)
    assert turbo.first_token_ms.quantile(0.99) == pytest.approx(2500)
    assert turbo.token_ms.average == pytest.approx(20, rel=1e-4)
    groq = PRESETS["groq-70b@2023"].profile
    assert groq.first_token_ms.quantile(0.5) == pytest.approx(222)
    assert groq.token_ms.average * Wobble(0.09).quantile(0.5) == pytest.approx(5.3)
    assert groq.speed_cv == 0.09
    cold = PRESETS["replicate-70b-coldstart@2023"].profile
    assert cold.first_token_ms.quantile(0.99) == pytest.approx(1188 * 2.718281828 ** (1.05 * 2.326),
                                                               rel=1e-3)  # fmt: skip


def test_table_has_a_row_for_each() -> None:
    """Without a bar that would break it."""
    table = list(rows())
    assert [row[0] for row in table] == list(PRESETS)
    assert not any("|" in cell for row in table for cell in row)
