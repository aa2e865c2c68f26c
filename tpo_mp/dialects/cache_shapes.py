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


class CacheStats(Struct):
    """The cache of a host; the totals are since it started, the rest is what lies there now.

    ``total_hits`` counts what was found in Redis, too; ``tier`` is null without one.
    """

    hit_rate: float
    entries: int
    bytes: int
    evictions: int
    total_hits: int
    total_misses: int
    total_kept: int
    tier: CacheTier | None


class CacheFlushed(Struct):
    """Nothing is found any more that was kept before."""

    status: Literal["flushed"]
