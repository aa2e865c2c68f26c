"""What the cache's routes answer."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class CacheStats(Struct):
    """The cache of a host; the totals are since it started, the rest is what lies there now."""

    hit_rate: float
    entries: int
    bytes: int
    evictions: int
    total_hits: int
    total_misses: int
    total_kept: int


class CacheFlushed(Struct):
    """Nothing is found any more that was kept before."""

    status: Literal["flushed"]
