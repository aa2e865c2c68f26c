"""Medians, spreads and percentiles; the only arithmetic results go through.

Invariants: the empty sequence is an error of the caller, never a zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Answer the middle value."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Answer half the distance from the smallest to the largest value, per median.

    0.05 reads "within five percent either way"; a median of zero has no share and answers 0.
    """
    middle = median(values)
    return (max(values) - min(values)) / 2 / abs(middle) if middle else 0.0


def percentile(ordered: Sequence[float], share: float) -> float:
    """Answer the smallest value with at least ``share`` of an ascending sequence at or below it."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
