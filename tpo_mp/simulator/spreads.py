"""Distributions made of others: one or the other, and one times another.

Invariants: ``quantile`` is the inverse of ``cdf`` to ``_PRECISION``.

Known weakness: the share of a product is a sum over ``_PARTS`` quantiles of one factor, true to
about a ten-thousandth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Final, Protocol

_UNIT: Final = NormalDist()
_PARTS: Final = 400
_PRECISION: Final = 1e-9


class Spread(Protocol):
    """What every distribution can tell."""

    @property
    def average(self) -> float:
        """Its mean; infinite where it has none."""

    def quantile(self, u: float) -> float:
        """The value that a share ``u`` (over nought, under one) is at or below."""

    def cdf(self, x: float) -> float:
        """The share at or below ``x``."""

    def draw(self, u: float) -> float:
        """One value, told by a uniform number."""


class Mixture:
    """One of several distributions, each with its share."""

    def __init__(self, parts: Sequence[tuple[float, Spread]]) -> None:
        self._parts = [(share, spread) for share, spread in parts if share > 0]

    @property
    def average(self) -> float:
        """The mean of the means."""
        return sum(share * spread.average for share, spread in self._parts)

    def cdf(self, x: float) -> float:
        """The shares at or below ``x``, together."""
        return sum(share * spread.cdf(x) for share, spread in self._parts)

    def quantile(self, u: float) -> float:
        """Between the parts' own quantiles."""
        own = [spread.quantile(u) for _, spread in self._parts]
        return _inverse(self.cdf, u, min(own), max(own))

    def draw(self, u: float) -> float:
        """The part that ``u`` falls into, by where in it."""
        for share, spread in self._parts:
            if u < share:
                return spread.draw(u / share)
            u -= share
        return self._parts[-1][1].draw(math.nextafter(1.0, 0.0))


class Wobble:
    """A factor around one: log-normal, so that it is over nought, and one on average."""

    __slots__ = ("_mu", "_sigma", "average", "variance")

    def __init__(self, *cvs: float) -> None:
        self.variance = sum(math.log1p(cv * cv) for cv in cvs)
        self._sigma = math.sqrt(self.variance)
        self._mu = -self.variance / 2
        self.average = 1.0

    def quantile(self, u: float) -> float:
        """The factor that a share ``u`` is at or below."""
        return math.exp(self._mu + self._sigma * _UNIT.inv_cdf(u))

    draw = quantile

    def cdf(self, x: float) -> float:
        """The share at or below ``x``."""
        if x <= 0 or not self._sigma:
            return float(x >= 1)
        return _UNIT.cdf((math.log(x) - self._mu) / self._sigma)


class Product:
    """A distribution times a factor that wobbles around one, independent of it."""

    def __init__(self, spread: Spread, wobble: Wobble) -> None:
        self._spread = spread
        self.average = spread.average
        parts = _PARTS if wobble.variance else 1
        self._factors = [wobble.quantile((n + 0.5) / parts) for n in range(parts)]

    def cdf(self, x: float) -> float:
        """The share at or below ``x``, over all factors."""
        cdf = self._spread.cdf
        return math.fsum(cdf(x / factor) for factor in self._factors) / len(self._factors)

    def quantile(self, u: float) -> float:
        """Between the distribution's own quantile times the least and the greatest factor."""
        own = self._spread.quantile(u)
        return _inverse(self.cdf, u, own * self._factors[0], own * self._factors[-1])

    def draw(self, u: float) -> float:
        """The value that a share ``u`` is at or below."""
        return self.quantile(u)


def _inverse(cdf: Callable[[float], float], u: float, low: float, high: float) -> float:
    """Where a rising ``cdf`` reaches ``u`` between two bounds."""
    while high - low > _PRECISION * max(abs(high), _PRECISION):
        middle = (low + high) / 2
        if cdf(middle) < u:
            low = middle
        else:
            high = middle
    return high
