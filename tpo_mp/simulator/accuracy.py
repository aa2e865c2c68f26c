"""How true simulated times are: what was drawn or measured against what was configured.

A quantile is right when it is within ``TOLERANCE`` of the configured one, or, where that is a jump
or a gap (recordings, two bells), when the share below it is within four standard errors.
Whole samples are compared by Kolmogorov and Smirnov's test with the asymptotic bound of the
distance (Smirnov, 1948).

Invariants: what is compared comes out of the code that serves calls, not of a copy of it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .profiles import CallTimes, Profile
from .spreads import Mixture, Product, Spread, Wobble

TOLERANCE: Final = 0.01
ALPHA: Final = 0.001
QUANTILES: Final = (0.5, 0.9, 0.99)
_SLICE: Final = 20_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison: ``off`` is relative for quantiles, the distance for whole samples."""

    subject: str
    what: str
    configured: float
    found: float
    off: float
    allowed: float
    right: bool


def first_token(profile: Profile) -> Spread:
    """How long calls of a profile wait for the first token, in milliseconds."""
    cold = profile.cold_start
    if cold is None or not cold.chance:
        return profile.first_token_ms
    return Mixture([(cold.chance, cold.first_token_ms), (1 - cold.chance, profile.first_token_ms)])


def further_token(profile: Profile) -> Product:
    """How long they wait for a further one, stalls apart, over all calls."""
    return Product(profile.token_ms, Wobble(profile.speed_cv, profile.jitter_cv))


def draw(
    profile: Profile, draws: int, progress: Callable[[int], None] = lambda _: None
) -> tuple[array[float], array[float]]:
    """The first two waits of so many calls, each with a key of its own, in milliseconds."""
    speed, jitter = Wobble(profile.speed_cv), Wobble(profile.jitter_cv)
    first, further = array("d"), array("d")
    for number in range(draws):
        drawing = CallTimes(profile, speed, jitter, number.to_bytes(8, "big"))
        first.append(drawing.first_ms())
        further.append(drawing.gap_ms())
        if number % _SLICE == _SLICE - 1:
            progress(_SLICE)
    return first, further


def sampler(
    name: str, profile: Profile, draws: int, progress: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Compare the quantiles of ``draws`` calls with the configured ones."""
    first, further = draw(profile, draws, progress)
    found = quantiles(name, "first token ms", first, first_token(profile))
    if profile.token_ms.average:
        found += quantiles(name, "token ms", further, further_token(profile))
    return found


def quantiles(subject: str, what: str, sample: Sequence[float], spread: Spread) -> list[Finding]:
    """Each of ``QUANTILES`` of a sample against a distribution's."""
    ordered = sorted(sample)
    findings = []
    for share in QUANTILES:
        configured, found = spread.quantile(share), quantile_of(ordered, share)
        off = abs(found - configured) / configured if configured else abs(found)
        error = 4 * math.sqrt(share * (1 - share) / len(ordered))
        right = off <= TOLERANCE or abs(spread.cdf(found) - share) <= error
        label = f"{what} p{share * 100:g}"
        findings.append(Finding(subject, label, configured, found, off, TOLERANCE, right))
    return findings


def kolmogorov(subject: str, what: str, sample: Sequence[float], spread: Spread) -> Finding:
    """Whether a sample can be of a distribution, at the level ``ALPHA``."""
    ordered = sorted(sample)
    count = len(ordered)
    distance = 0.0
    for number, value in enumerate(ordered):
        share = spread.cdf(value)
        distance = max(distance, share - number / count, (number + 1) / count - share)
    bound = math.sqrt(-math.log(ALPHA / 2) / 2) / math.sqrt(count)
    return Finding(
        subject, f"{what}, Kolmogorov-Smirnov", 0.0, distance, distance, bound, distance <= bound
    )


def quantile_of(ordered: Sequence[float], share: float) -> float:
    """A quantile of an ordered sample, between its two neighbours (type 7)."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
