"""The host's statistics of simulated calls, read off the metrics of every worker.

Counters only grow; setting the statistics back keeps what they said then in the live state, so
every worker subtracts the same.

Known weakness: the 99th percentile is as fine as the buckets of the histogram.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tpo_mp.observe.health import FamilyView

from .live import StatsBaseline
from .meter import ACTIVE, DURATION, ERRORS, REQUESTS


def totals(families: Iterable[FamilyView], at: float) -> tuple[StatsBaseline, list[float], int]:
    """What the counters say now, the buckets' bounds, and the calls under way."""
    found = {family.name: family.samples for family in families}

    def total(name: str) -> float:
        return sum(sample.value for sample in found.get(name, ()))

    bounds: list[float] = []
    counts: list[int] = []
    for sample in found.get(DURATION, ()):
        if not bounds:
            bounds = [bound for bound, _ in sample.buckets]
            counts = [0] * len(bounds)
        # Same code, same bounds: the series of all labels can be added place by place.
        counts = [n + more for n, (_, more) in zip(counts, sample.buckets, strict=True)]
    now = StatsBaseline(
        at=at,
        requests=int(total(REQUESTS)),
        errors=int(total(ERRORS)),
        duration_s=sum(sample.sum for sample in found.get(DURATION, ())),
        buckets=tuple(counts),
    )
    return now, bounds, int(total(ACTIVE))


def since(
    baseline: StatsBaseline | None, families: Iterable[FamilyView], at: float, started_at: float
) -> dict[str, Any]:
    """The statistics since they were set back, or since the host started."""
    now, bounds, active = totals(families, at)
    base = baseline or StatsBaseline(at=started_at)
    before = (*base.buckets, *[0] * (len(now.buckets) - len(base.buckets)))
    counts = [n - was for n, was in zip(now.buckets, before, strict=True)]
    requests = now.requests - base.requests
    passed_s = max(at - base.at, 1e-9)
    duration_s = now.duration_s - base.duration_s
    return {
        "uptime_seconds": max(at - started_at, 0.0),
        "since_seconds": passed_s,
        "active_requests": active,
        "total_requests": requests,
        "total_errors": now.errors - base.errors,
        "avg_latency_ms": duration_s / requests * 1e3 if requests else 0.0,
        "p99_latency_ms": quantile(0.99, bounds, counts) * 1e3,
        "requests_per_second": requests / passed_s,
    }


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float:
    """A quantile of cumulative ``counts``, evenly between the bounds of its bucket."""
    if not counts or not counts[-1]:
        return 0.0
    wanted = share * counts[-1]
    below, low = 0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - below) / max(count - below, 1)
        below, low = count, bound
    return low
