"""The cache over HTTP: what it is good for, and how to empty it; for admins.

Invariants: the numbers are the host's, whichever worker answers; a flush is everybody's before it
is answered, and what was being asked meanwhile is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from tpo_mp.dialects import cache_shapes as shapes
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.observe.health import FamilyView
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.spending import SAVED_CALLS, SAVED_COST, SAVED_TOKENS
from tpo_mp.ports import Env, Feature

_FIELDS: Final = {SAVED_CALLS[0]: "calls", SAVED_TOKENS[0]: "tokens", SAVED_COST[0]: "cost_usd"}
_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class CacheApi:
    """``/api/v1/cache``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._cache = env.cache
        self._tier = env.tier

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            *Endpoint(
                "GET", "/api/v1/cache/stats", self.stats, "native", access="admin",
                outcomes=(Outcome("what is in it, and how often that helped", shapes.CacheStats),),
            ).at("/v1/cache/stats"),
            *Endpoint(
                "DELETE", "/api/v1/cache", self.flush, "native", access="admin",
                takes_json=False, errors=(503,),
                outcomes=(Outcome("it is empty", shapes.CacheFlushed),),
            ).at("/v1/cache"),
        ]  # fmt: skip

    async def stats(self, exchange: Exchange) -> None:
        """Say how many answers the cache holds and how many calls it answered."""
        entries = size = 0
        for length in self._cache.sizes():
            if length:
                entries, size = entries + 1, size + length
            else:
                await asyncio.sleep(0)  # others run between two pieces
        arena = self._gateway.metrics_arena
        loop = asyncio.get_running_loop()
        by = await loop.run_in_executor(None, lambda: _saved(arena.collect()))
        counts = self._cache.counts()
        looked_up = counts.hits + counts.misses
        told = shapes.CacheStats(
            hit_rate=counts.hits / looked_up if looked_up else 0.0,
            entries=entries,
            bytes=size,
            evictions=counts.evicted,
            total_hits=counts.hits,
            total_misses=counts.misses,
            total_kept=counts.kept,
            tier=self._tier_stats(),
            saved=_sum(by.values()),
            saved_by=by,
        )
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    def _tier_stats(self) -> shapes.CacheTier | None:
        if self._tier is None:
            return None
        return shapes.CacheTier(self._tier.up, *self._cache.tier_counts())

    async def flush(self, exchange: Exchange) -> None:
        """Forget every kept answer, on all workers, and in Redis."""
        try:
            if self._tier is not None:
                await self._tier.flush()
        finally:
            self._cache.flush()  # ours is forgotten whatever Redis says
        told = shapes.CacheFlushed("flushed")
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))


def _saved(families: Iterable[FamilyView]) -> dict[str, shapes.Saved]:
    """What the host saved, by the way it did."""
    by: dict[str, shapes.Saved] = {}
    for family in families:
        field = _FIELDS.get(family.name)
        if field is None:
            continue
        for sample in family.samples:
            one = by.setdefault(dict(sample.labels).get("by", ""), shapes.Saved(0, 0, 0.0))
            setattr(one, field, type(getattr(one, field))(getattr(one, field) + sample.value))
    return by


def _sum(parts: Iterable[shapes.Saved]) -> shapes.Saved:
    calls = tokens = 0
    cost_usd = 0.0
    for one in parts:
        calls, tokens, cost_usd = calls + one.calls, tokens + one.tokens, cost_usd + one.cost_usd
    return shapes.Saved(calls, tokens, cost_usd)


FEATURE = Feature(Config, CacheApi)
