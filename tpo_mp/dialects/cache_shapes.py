"""What the cache's routes answer."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class CacheTier(Struct):
    """What the host's calls found in Redis; ``reachable`` is as the worker sees it that answers."""

    reachable: bool
    total_hits: int
    total_misses: int
    total_unavailable: int


class Saved(Struct):
    """Calls that were answered without a backend; ``cost_usd`` is of those with a known price."""

    calls: int
    tokens: int
    cost_usd: float


class CacheStats(Struct):
    """The cache of a host; the totals are since it started, the rest is what lies there now.

    ``total_hits`` counts what was found in Redis, too; ``tier`` is null without one.  ``saved`` is
    what all ways of sharing an answer come to, ``saved_by`` what each does: ``hit``, ``coalesced``,
    ``semantic`` and ``replayed`` (by an idempotency key).
    """

    hit_rate: float
    entries: int
    bytes: int
    evictions: int
    total_hits: int
    total_misses: int
    total_kept: int
    tier: CacheTier | None
    saved: Saved
    saved_by: dict[str, Saved]


class CacheFlushed(Struct):
    """Nothing is found any more that was kept before."""

    status: Literal["flushed"]
