"""The arithmetic of limits: what drained, what a call would overfill, how much to take ahead.

A limit of requests or tokens is a bucket: what is used goes in, and the period's number drains out
evenly over the period, so that a caller is never let in twice as often round the edge of a minute.
A limit of calls at once is a number of places.  All limits of one name are one ``Quota``::

    cells    used of rps | rpm | rph | tpm | when that held | let in | refused | (the quota's own)

Invariants: no bucket drains below what is leased from it, so that a lease that is spent later than
it was taken never lets in more than its bucket would have; nothing here is ever below zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tpo_mp.types import Quota

PERIODS: Final = ((1, "second"), (60, "minute"), (3600, "hour"))
TOKENS, HELD_AT, LET_IN, REFUSED = 3, 4, 5, 6
LEASE_FROM: Final = 1024
"""Calls that must be left for each sharer before one takes any ahead.

It is more than a worker lets in while a lease is out, so that nobody is refused a place which
another holds in advance.
"""
LEASE_PART: Final = 32
"""A lease is at most one part in so many of what is left for each sharer."""
MOST_LEASED: Final = 256
BUSY_WAIT_S: Final = 1.0
"""When to come back for a place: nobody knows when a call ends."""
_ALMOST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Bucket:
    """One window: ``limit`` a ``period``, of which ``room`` at once; drained by ``per_s``."""

    cell: int
    limit: int
    period: str
    per_s: float
    room: int

    @property
    def what(self) -> str:
        """What it counts."""
        return "tokens" if self.cell == TOKENS else "requests"


@dataclass(frozen=True, slots=True)
class LimitSet:
    """All limits of one name; ``concurrent`` 0: any number at once."""

    buckets: tuple[Bucket, ...]
    concurrent: int = 0

    @property
    def tokens(self) -> Bucket | None:
        """The bucket of tokens."""
        return next((b for b in self.buckets if b.cell == TOKENS), None)


@dataclass(frozen=True, slots=True)
class Excess:
    """What makes a call wait longest; no bucket: too many calls at once."""

    bucket: Bucket | None
    used: float
    wait_s: float


def limits_of(
    requests: Sequence[int | None], burst: int | None, tokens: int | None, concurrent: int | None
) -> LimitSet:
    """``requests`` a second, minute and hour; ``burst`` belongs to the shortest of them."""
    found: list[Bucket] = []
    for cell, (limit, (seconds, period)) in enumerate(zip(requests, PERIODS, strict=True)):
        if limit is not None:
            found.append(Bucket(cell, limit, period, limit / seconds, burst or limit))
            burst = None
    if tokens is not None:
        found.append(Bucket(TOKENS, tokens, "minute", tokens / 60, tokens))
    return LimitSet(tuple(found), concurrent or 0)


def drain(quota: Quota, limits: LimitSet, now: float) -> None:
    """Bring the buckets to ``now``, and give back what dead processes had left of their leases."""
    cells = quota.cells
    passed_s = max(now - cells[HELD_AT], 0.0)  # another worker's clock may have been read later
    for bucket in limits.buckets:
        cell = bucket.cell
        if cell == TOKENS:
            leased, lost = quota.tokens + quota.others_tokens, quota.lost_tokens
        else:
            leased, lost = quota.requests + quota.others_requests, quota.lost_requests
        used = max(cells[cell] - passed_s * bucket.per_s, float(leased + lost))
        cells[cell] = max(used - lost, 0.0)
    cells[LET_IN] = max(cells[LET_IN] - quota.lost_requests, 0.0)
    cells[HELD_AT] = max(now, cells[HELD_AT])


def put(quota: Quota, limits: LimitSet, calls: int, tokens: int) -> None:
    """Count so many calls with so many tokens together, or take them out again."""
    cells = quota.cells
    for bucket in limits.buckets:
        more = tokens if bucket.cell == TOKENS else calls
        cells[bucket.cell] = max(cells[bucket.cell] + more, 0.0)
    cells[LET_IN] = max(cells[LET_IN] + calls, 0.0)
    if limits.concurrent:
        quota.held = max(quota.held + calls, 0)


def excess(quota: Quota, limits: LimitSet, tokens: int) -> Excess | None:
    """What has no room for one more call of so many tokens; of several, what takes longest."""
    longest: Excess | None = None
    if limits.concurrent and quota.held + quota.others_held >= limits.concurrent:
        longest = Excess(None, quota.held + quota.others_held, BUSY_WAIT_S)
    for bucket in limits.buckets:
        used = quota.cells[bucket.cell]
        more = tokens if bucket.cell == TOKENS else 1
        if not more or used + more <= bucket.room + _ALMOST:
            continue
        wait_s = (used + more - bucket.room) / bucket.per_s
        if longest is None or wait_s > longest.wait_s:
            longest = Excess(bucket, used, wait_s)
    return longest


def ahead(quota: Quota, limits: LimitSet, tokens: int, sharers: int) -> int:
    """How many calls of so many tokens to take at once: 1 unless there is plenty."""
    left = float("inf")
    for bucket in limits.buckets:
        more = tokens if bucket.cell == TOKENS else 1
        if more:
            left = min(left, (bucket.room - quota.cells[bucket.cell]) / more)
    if limits.concurrent:
        left = min(left, limits.concurrent - quota.held - quota.others_held)
    if left < LEASE_FROM * sharers:
        return 1
    return int(min(left / (LEASE_PART * sharers), MOST_LEASED))
