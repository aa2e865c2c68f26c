"""Distributions: quantiles against shares, draws against quantiles, what contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from tpo_mp.simulator.distributions import (
    Bimodal,
    Distribution,
    Empirical,
    Exponential,
    Fixed,
    LogNormal,
    Normal,
    Pareto,
    Uniform,
)

SHAPES: list[Distribution] = [
    Uniform(low=50, high=100),
    Normal(mean=20, sd=5),
    LogNormal(p50=800, p99=2500),
    LogNormal(mean=7.6, sd=3.8),
    LogNormal(p50=222, sigma=0.19),
    Exponential(mean=5),
    Pareto(least=2, alpha=3.5),
    Bimodal(fast_mean=100, fast_sd=20, slow_mean=500, slow_sd=100, fast_share=0.8),
    Empirical(values=(5, 1, 2, 9)),
    Empirical(points=((0, 1), (0.5, 2), (1, 10))),
]


def named(shape: Distribution) -> str:
    """For the list of tests."""
    return repr(shape)[:60]


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_share_of_a_quantile_is_its_own(shape: Distribution) -> None:
    """``cdf`` undoes ``quantile``, and both rise."""
    shares = [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
    values = [shape.quantile(share) for share in shares]
    assert values == sorted(values)
    for share, value in zip(shares, values, strict=True):
        assert shape.cdf(value) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_draws_have_the_quantiles_and_the_mean(shape: Distribution) -> None:
    """Within five standard errors of the share, over 20 000 draws of a seeded stream."""
    random, count = Random(7), 20_000
    drawn = sorted(shape.draw(random.random()) for _ in range(count))
    for share in (0.1, 0.5, 0.9):
        error = 5 * math.sqrt(share * (1 - share) / count)
        assert shape.cdf(drawn[int(share * count)]) == pytest.approx(share, abs=error)
    assert sum(drawn) / count == pytest.approx(shape.average, rel=0.03)


def test_what_is_told_is_what_comes_out() -> None:
    """A log-normal by its p50 and p99 has them, one by mean and sd has these."""
    told = LogNormal(p50=800, p99=2500)
    assert told.quantile(0.5) == pytest.approx(800)
    assert told.quantile(0.99) == pytest.approx(2500)
    assert told.bell[1] == pytest.approx(0.490, abs=5e-4)
    assert told.average == pytest.approx(902, abs=1)
    assert LogNormal(mean=300, sd=150).average == pytest.approx(300)


def test_nothing_is_below_nought() -> None:
    """What a bell has there counts as nought, and its mean is known all the same."""
    bell = Normal(mean=10, sd=20)
    assert bell.quantile(0.1) == 0
    assert bell.cdf(0) == pytest.approx(0.3085, abs=1e-4)
    assert bell.cdf(-1) == 0
    many = [bell.draw((n + 0.5) / 4000) for n in range(4000)]
    assert sum(many) / 4000 == pytest.approx(bell.average, rel=1e-3)


def test_recorded_values_are_joined_by_lines_or_not() -> None:
    """Linear between order statistics, or the nearest of them; shares may be given."""
    values = (10.0, 20.0, 40.0)
    assert [Empirical(values=values).quantile(u) for u in (0.25, 0.5, 0.75)] == [15, 20, 30]
    nearest = Empirical(values=values, interpolation="nearest")
    assert {nearest.quantile(u) for u in (0.1, 0.3, 0.6, 0.9)} == {10, 20, 40}
    assert nearest.average == 22.5
    assert Empirical(values=(7.0,)).quantile(0.3) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(low=2, high=1),
        lambda: LogNormal(p50=5),
        lambda: LogNormal(p50=5, p99=9, sd=1),
        lambda: LogNormal(p50=5, p99=4),
        lambda: Bimodal(fast_mean=9, fast_sd=1, slow_mean=5, slow_sd=1, fast_share=0.5),
        Empirical,
        lambda: Empirical(values=(1.0,), file="x"),
        lambda: Empirical(points=((0.1, 1), (1, 2))),
        lambda: Empirical(points=((0, 3), (1, 2))),
    ],
)
def test_contradictions_are_refused(make: Callable[[], Distribution]) -> None:
    """By a sentence."""
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        make()


def test_fixed_is_always_the_same() -> None:
    """Whatever is drawn."""
    shape = Fixed(value=3)
    assert {shape.draw(u) for u in (0.1, 0.9)} == {3} == {shape.average}
    assert (shape.cdf(2.9), shape.cdf(3)) == (0, 1)
