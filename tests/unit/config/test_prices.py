"""Prices: the operator's first, then the table's; a model nobody priced has no cost, not 0."""

from __future__ import annotations

import hashlib
import re

import pytest

from tpo_mp.config.prices import (
    MOST_REMEMBERED,
    TABLE,
    VERSION,
    Prices,
    PricesSection,
    TokenPrice,
)

DIGESTS = {"2026.11.1": "4a3ffec2dd564218"}
"""Each version ever shipped, and what its table was."""


def of(**models: TokenPrice) -> Prices:
    """Prices with these in front."""
    return Prices(PricesSection(models=models))


def test_both_sides_and_the_cached_part_are_paid() -> None:
    """Per million tokens; the cached ones are a part of the prompt, never more than all of it."""
    prices = of(m=TokenPrice(input=2, output=8, cached=0.5))
    assert prices.cost_usd("m", 500_000, 250_000) == pytest.approx(3.0)
    assert prices.cost_usd("m", 500_000, 0, 100_000) == pytest.approx(0.8 + 0.05)
    assert prices.cost_usd("m", 100, 0, 10**9) == pytest.approx(100 * 0.5 / 1e6)
    plain = of(m=TokenPrice(input=2, output=8))
    assert plain.cost_usd("m", 500_000, 0, 500_000) == pytest.approx(1.0)


def test_a_model_without_a_price_has_no_cost() -> None:
    """And neither has a call whose tokens nobody reported; a price of 0 is a cost of 0."""
    prices = of(free=TokenPrice(input=0, output=0))
    assert prices.cost_usd("unheard-of", 9, 9) is None
    assert prices.cost_usd("gpt-4o", -1, -1) is None
    assert prices.cost_usd("free", 9, 9) == 0
    assert prices.cost_usd("gpt-4o", 1_000_000, -1) == pytest.approx(2.5)


def test_what_is_saved_is_what_it_would_have_cost() -> None:
    """Asked afresh, without anything cached; nothing for a dark model."""
    prices = of(m=TokenPrice(input=2, output=8, cached=0.5))
    assert prices.saved_usd("m", 1000, 100) == pytest.approx(0.0028)
    assert prices.saved_usd("dark", 1000, 100) is None
    assert prices.saved_usd("m", -1, -1) is None


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("gpt-4o", 2.5),
        ("gpt-4o-2024-08-06", 2.5),
        ("gpt-4o-mini", 0.15),
        ("gpt-4o-mini-2024-07-18", 0.15),
        ("claude-sonnet-4-20250514", 3),
        ("claude-3-5-haiku-latest", 0.8),
        ("gpt-4-turbo-preview", 10),
        ("gpt-4-0613", 30),
        ("gpt-5.9", None),
        ("claude-sonnet-4-99", None),
        ("gpt-4o-audio-preview", None),
        ("", None),
    ],
)
def test_a_row_fits_its_model_and_snapshots_only(model: str, dollars: float | None) -> None:
    """A sibling with another price must not get this one's."""
    cost = Prices().cost_usd(model, 1_000_000, 0)
    assert cost == (None if dollars is None else pytest.approx(dollars))


def test_the_operator_s_prices_win() -> None:
    """A name before a glob, globs in order, and the table only where it is wanted."""
    chosen = {
        "gpt-*": TokenPrice(input=1, output=1),
        "gpt-4o": TokenPrice(input=7, output=7),
        "*": TokenPrice(input=9, output=9),
    }
    prices = Prices(PricesSection(models=chosen))
    assert prices.cost_usd("gpt-4o", 1_000_000, 0) == 7
    assert prices.cost_usd("gpt-4.1", 1_000_000, 0) == 1
    assert prices.cost_usd("o3", 1_000_000, 0) == 9
    alone = Prices(PricesSection(builtin=False))
    assert alone.cost_usd("gpt-4o", 1, 1) is None
    assert (Prices().version, alone.version) == (VERSION, "")


def test_names_that_clients_bring_are_not_kept_for_ever() -> None:
    """Whatever a client calls a model is looked up, and forgotten again."""
    prices = Prices()
    for n in range(3 * MOST_REMEMBERED):
        prices.cost_usd(f"made-up-{n}", 1, 1)
    assert len(prices._known) <= MOST_REMEMBERED
    assert prices.cost_usd("gpt-4o", 1_000_000, 0) == 2.5


def test_a_changed_table_has_a_new_version() -> None:
    """Records and reports name the version; the same one must mean the same prices."""
    digest = hashlib.sha256(repr([*map(tuple, TABLE)]).encode()).hexdigest()[:16]
    assert DIGESTS.get(VERSION) == digest, f"{VERSION} is another table; add a version: {digest}"


def test_every_row_says_where_and_when() -> None:
    """And no model has two."""
    assert len({row.model for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.source.startswith("https://")
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", row.date)
        assert row.cached is None or row.cached <= row.input
