"""Distributions of waits and lengths, each with its exact quantiles; no value is below nought.

A draw is a quantile of a uniform number, so a random stream and a distribution tell the value, and
what was drawn can be compared with what was asked for (see ``selfcheck``).

Invariants: ``cdf(quantile(u)) = u`` wherever the distribution is continuous; what would fall below
nought is nought; a struct that exists is sound: what contradicts itself is a ``ValueError`` that
names the option.

Sources: the quantile functions are the textbook ones (Johnson, Kotz and Balakrishnan, *Continuous
Univariate Distributions*, 1994); between order statistics, type 7 of Hyndman and Fan (1996).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from .samples import read_samples
from .spreads import Mixture, Spread
from .traces import TraceColumn, lengths_of

Z99: Final = NormalDist().inv_cdf(0.99)
_UNIT: Final = NormalDist()

Positive: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
NotNegative: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]


class _Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape",
             dict=True):  # fmt: skip
    """One distribution of the config; ``shape`` says which."""

    def draw(self: Spread, u: float) -> float:
        """One value, told by a uniform number."""
        return self.quantile(u)


class Fixed(_Shape, frozen=True, kw_only=True, tag="fixed"):
    """Always the same."""

    value: NotNegative

    @property
    def average(self) -> float:
        return self.value

    def quantile(self, u: float) -> float:  # noqa: ARG002 - it has but one
        return self.value

    def cdf(self, x: float) -> float:
        return float(x >= self.value)


class Uniform(_Shape, frozen=True, kw_only=True, tag="uniform"):
    """Anything between two bounds, alike."""

    low: NotNegative
    high: NotNegative

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is over high")

    @property
    def average(self) -> float:
        return (self.low + self.high) / 2

    def quantile(self, u: float) -> float:
        return self.low + u * (self.high - self.low)

    def cdf(self, x: float) -> float:
        if self.high == self.low:
            return float(x >= self.low)
        return min(max((x - self.low) / (self.high - self.low), 0.0), 1.0)


class Normal(_Shape, frozen=True, kw_only=True, tag="normal"):
    """A bell; what is below nought counts as nought."""

    mean: NotNegative
    sd: NotNegative

    @property
    def average(self) -> float:
        if not self.sd:
            return self.mean
        z = self.mean / self.sd
        return self.mean * _UNIT.cdf(z) + self.sd * _UNIT.pdf(z)

    def quantile(self, u: float) -> float:
        return max(self.mean + self.sd * _UNIT.inv_cdf(u), 0.0)

    def cdf(self, x: float) -> float:
        if x < 0 or not self.sd:
            return float(x >= self.mean) if x >= 0 else 0.0
        return _UNIT.cdf((x - self.mean) / self.sd)


class LogNormal(_Shape, frozen=True, kw_only=True, tag="lognormal"):
    """Its logarithm is a bell: by ``p50`` with ``p99`` or ``sigma``, or by ``mean`` and ``sd``."""

    p50: Positive | None = None
    p99: Positive | None = None
    sigma: NotNegative | None = None
    mean: Positive | None = None
    sd: NotNegative | None = None

    def __post_init__(self) -> None:
        given = {name for name in self.__struct_fields__ if getattr(self, name) is not None}
        if given not in ({"p50", "p99"}, {"p50", "sigma"}, {"mean", "sd"}):
            raise ValueError("takes p50 and p99, or p50 and sigma, or mean and sd")
        if self.p50 and self.p99 and self.p99 < self.p50:
            raise ValueError("p99 is under p50")

    @cached_property
    def bell(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm."""
        if self.p50 is not None:
            if self.p99 is not None:
                return math.log(self.p50), math.log(self.p99 / self.p50) / Z99
            return math.log(self.p50), self.sigma or 0.0
        assert self.mean is not None
        assert self.sd is not None
        variance = math.log1p((self.sd / self.mean) ** 2)
        return math.log(self.mean) - variance / 2, math.sqrt(variance)

    @property
    def average(self) -> float:
        mu, sigma = self.bell
        return math.exp(mu + sigma * sigma / 2)

    def quantile(self, u: float) -> float:
        mu, sigma = self.bell
        return math.exp(mu + sigma * _UNIT.inv_cdf(u))

    def cdf(self, x: float) -> float:
        mu, sigma = self.bell
        if x <= 0 or not sigma:
            return float(x > 0 and math.log(x) >= mu)
        return _UNIT.cdf((math.log(x) - mu) / sigma)


class Exponential(_Shape, frozen=True, kw_only=True, tag="exponential"):
    """Without memory."""

    mean: Positive

    @property
    def average(self) -> float:
        return self.mean

    def quantile(self, u: float) -> float:
        return -self.mean * math.log1p(-u)

    def cdf(self, x: float) -> float:
        return -math.expm1(-x / self.mean) if x > 0 else 0.0


class Pareto(_Shape, frozen=True, kw_only=True, tag="pareto"):
    """Nothing under ``least``, and a tail that falls as the power ``-alpha``."""

    least: Positive
    alpha: Annotated[float, Meta(gt=0, le=100)]

    @property
    def average(self) -> float:
        return self.least * self.alpha / (self.alpha - 1) if self.alpha > 1 else math.inf

    def quantile(self, u: float) -> float:
        return self.least * math.exp(-math.log1p(-u) / self.alpha)

    def cdf(self, x: float) -> float:
        return -math.expm1(self.alpha * math.log(self.least / x)) if x > self.least else 0.0


class Bimodal(_Shape, frozen=True, kw_only=True, tag="bimodal"):
    """Two bells, as of prompts whose beginning is in a cache and of others."""

    fast_mean: NotNegative
    fast_sd: NotNegative
    slow_mean: NotNegative
    slow_sd: NotNegative
    fast_share: Annotated[float, Meta(ge=0, le=1)]

    def __post_init__(self) -> None:
        if self.fast_mean > self.slow_mean:
            raise ValueError("fast_mean is over slow_mean")

    @cached_property
    def _bells(self) -> Mixture:
        return Mixture([
            (self.fast_share, Normal(mean=self.fast_mean, sd=self.fast_sd)),
            (1 - self.fast_share, Normal(mean=self.slow_mean, sd=self.slow_sd)),
        ])  # fmt: skip

    @property
    def average(self) -> float:
        return self._bells.average

    def quantile(self, u: float) -> float:
        return self._bells.quantile(u)

    def draw(self, u: float) -> float:
        return self._bells.draw(u)

    def cdf(self, x: float) -> float:
        return self._bells.cdf(x)


class Empirical(_Shape, frozen=True, kw_only=True, tag="empirical"):
    """What was recorded: in ``values``, in a ``file``, or as ``[share, value]`` ``points``."""

    values: Annotated[tuple[NotNegative, ...], Meta(min_length=1, max_length=100_000)] | None = None
    file: str | None = None
    trace: TraceColumn | None = None
    """The file is a public trace of requests, and this is what is taken of each."""
    points: (
        Annotated[
            tuple[tuple[Annotated[float, Meta(ge=0, le=1)], NotNegative], ...],
            Meta(min_length=2, max_length=1000),
        ]
        | None
    ) = None
    interpolation: Literal["linear", "nearest"] = "linear"

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.values, self.file, self.points)) != 1:
            raise ValueError("takes one of values, file and points")
        if self.trace is not None and self.file is None:
            raise ValueError("trace says what is taken of a file")
        if self.points is not None:
            shares = [share for share, _ in self.points]
            heights = [value for _, value in self.points]
            if shares != sorted(set(shares)) or heights != sorted(heights):
                raise ValueError("points must rise")
            if shares[0] != 0 or shares[-1] != 1:
                raise ValueError("points must go from share 0 to share 1")

    @cached_property
    def _curve(self) -> tuple[Sequence[float], Sequence[float]]:
        """Shares and the values there, both rising."""
        if self.points is not None:
            return [share for share, _ in self.points], [value for _, value in self.points]
        ordered: Sequence[float]
        if self.file is not None:
            path = Path(self.file)
            ordered = lengths_of(path, self.trace) if self.trace else read_samples(path)
        else:
            ordered = sorted(self.values or ())
        steps = max(len(ordered) - 1, 1)
        return [number / steps for number in range(len(ordered))], ordered

    @property
    def average(self) -> float:
        shares, values = self._curve
        if len(values) == 1:
            return values[0]
        # The same for both interpolations: half a span belongs to each of its ends.
        spans = zip(shares, shares[1:], values, values[1:], strict=False)
        return sum((b - a) * (low + high) / 2 for a, b, low, high in spans)

    def quantile(self, u: float) -> float:
        shares, values = self._curve
        at = bisect_right(shares, u)
        if at == len(shares):
            return values[-1]
        part = (u - shares[at - 1]) / (shares[at] - shares[at - 1])
        if self.interpolation == "nearest":
            return values[at] if part >= 0.5 else values[at - 1]
        return values[at - 1] + part * (values[at] - values[at - 1])

    def cdf(self, x: float) -> float:
        shares, values = self._curve
        if x >= values[-1]:
            return 1.0
        if x < values[0]:
            return 0.0
        at = bisect_right(values, x)
        low, high = values[at - 1], values[at]
        if self.interpolation == "nearest":
            return (shares[at - 1] + shares[at]) / 2
        return shares[at - 1] + (x - low) / (high - low) * (shares[at] - shares[at - 1])


Distribution: TypeAlias = (
    Fixed | Uniform | Normal | LogNormal | Exponential | Pareto | Bimodal | Empirical
)
