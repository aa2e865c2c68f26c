"""Prices: the operator's first, then the design's; no price, no cost."""

from __future__ import annotations

from tpo_mp.simulator.prices import Prices, TokenPrice


def test_cost_is_of_both_sides() -> None:
    """Per million tokens."""
    prices = Prices({"mine*": TokenPrice(input=2, output=8)})
    assert prices.line("mine-1", 500_000, 250_000) == b"x-sim-cost-usd: 3.00000000\r\n"
    assert prices.line("gpt-4-turbo", 1_000_000, 0) == b"x-sim-cost-usd: 10.00000000\r\n"
    assert prices.line("unheard-of", 9, 9) == b""


def test_the_operator_s_price_wins() -> None:
    """Over the design's for the same models."""
    prices = Prices({"gpt-4-turbo*": TokenPrice(input=1, output=1)})
    assert prices.line("gpt-4-turbo", 1_000_000, 0) == b"x-sim-cost-usd: 1.00000000\r\n"
