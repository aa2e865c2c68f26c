"""Mixtures, and products with a factor around one."""

from __future__ import annotations

import math
from random import Random

import pytest

from tpo_mp.simulator.distributions import Fixed, LogNormal, Normal
from tpo_mp.simulator.spreads import Mixture, Product, Wobble


def test_mixture_is_one_part_or_the_other() -> None:
    """Its draws have its shares, and its quantile undoes them."""
    both = Mixture([(0.7, Normal(mean=10, sd=1)), (0.3, Normal(mean=50, sd=5))])
    assert both.average == pytest.approx(22)
    for share in (0.1, 0.5, 0.69, 0.8, 0.99):
        assert both.cdf(both.quantile(share)) == pytest.approx(share, abs=1e-6)
    random = Random(3)
    drawn = [both.draw(random.random()) for _ in range(20_000)]
    assert sum(value < 25 for value in drawn) / 20_000 == pytest.approx(0.7, abs=0.02)
    assert Mixture([(1.0, Fixed(value=2))]).draw(0.999999) == 2


def test_factor_is_one_on_average_whatever_its_spread() -> None:
    """So that a spread makes nothing slower."""
    random = Random(5)
    for cv in (0.04, 0.5, 0.76):
        factor = Wobble(cv)
        drawn = [factor.draw(random.random()) for _ in range(40_000)]
        mean = sum(drawn) / len(drawn)
        assert mean == pytest.approx(1, abs=5 * cv / math.sqrt(len(drawn)))
        spread = math.sqrt(sum((x - mean) ** 2 for x in drawn) / len(drawn))
        assert spread == pytest.approx(cv, rel=0.05)
    assert Wobble().quantile(0.9) == 1


def test_product_of_two_log_normals_is_the_one_we_know() -> None:
    """The sum over quantiles is true to less than a thousandth there."""
    body = LogNormal(mean=10, sd=5)
    both = Product(body, Wobble(0.2, 0.3))
    variance = math.log1p(0.25) + math.log1p(0.04) + math.log1p(0.09)
    exact = LogNormal(p50=10 / math.exp(variance / 2), sigma=math.sqrt(variance))
    assert both.average == pytest.approx(10)
    for share in (0.01, 0.5, 0.9, 0.99):
        assert both.quantile(share) == pytest.approx(exact.quantile(share), rel=2e-3)
        assert both.cdf(exact.quantile(share)) == pytest.approx(share, abs=1e-3)
