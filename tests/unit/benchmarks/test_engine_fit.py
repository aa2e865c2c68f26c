"""The fit of engine presets: its page is current, its search finds, the cliff is there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from benchmarks.engine_fit import PAGE, PRESETS, TABLES, off, section, serve, simplex


@pytest.mark.parametrize("name", ["nim-8b", "vllm-8b-h100", "vllm-70b-tp8-h100", "dynamo-mocker"])
def test_page_shows_what_the_preset_gives_now(name: str) -> None:
    """Figures, coefficients and assumptions; ``python -m benchmarks.engine_fit`` writes it."""
    assert "\n".join(section(name)) in PAGE.read_text()


def test_every_preset_has_its_section() -> None:
    """And its figures."""
    assert set(TABLES) == set(PRESETS)
    assert [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")] == list(
        PRESETS
    )


def test_saturated_preset_falls_off_the_published_cliff() -> None:
    """ITL as published and frozen beyond the batch; TTFT as published, a hundred times longer."""
    shape, (table,) = PRESETS["nim-70b-fp8"].shape, TABLES["nim-70b-fp8"]
    seen = {}
    for figure in table.figures:
        if figure.clients in (1, 100, 200):
            ttft, itl = seen[figure.clients] = serve(shape, table, figure.clients)
            assert abs(off(ttft, figure.ttft_ms)) < 0.1
            assert abs(off(itl, figure.itl_ms)) < 0.05
    assert seen[200][1] == pytest.approx(seen[100][1], rel=0.02)
    assert seen[200][0] > 100 * seen[1][0]


def test_search_finds_the_bottom_of_a_valley() -> None:
    """Rosenbrock's, which is bent and flat."""

    def valley(point: Sequence[float]) -> float:
        x, y = point
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    best, (x, y) = simplex(valley, [-1.2, 1.0], 200)
    assert best < 1e-6
    assert math.dist((x, y), (1, 1)) < 1e-2


def test_value_within_a_range_is_not_off() -> None:
    """Outside it, the nearer end counts."""
    assert off(12, (10, 15)) == 0
    assert off(30, (10, 15)) == 1
    assert off(5, (10, 15)) == -0.5
