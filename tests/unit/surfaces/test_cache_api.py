"""The cache over HTTP: its numbers, and that a flush forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.fake_gateway import FakeExchange, Surface
from tests.support.raw import build
from tpo_mp.http.endpoints import EndpointTable
from tpo_mp.http.exchange import Exchange
from tpo_mp.http.head import parse
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable
from tpo_mp.surfaces.cache_api import FEATURE


class Shown:
    """The surface over a real cache."""

    def __init__(self) -> None:
        self.table = RowTable.create(8)
        self.segment = CacheSegment.create(1, 1 << 20)
        self.cache = SharedCache(self.segment, self.table, seat=0, clock=lambda: 5.0)

        def built(config: Any, env: Env) -> Any:
            return FEATURE.build(config, replace(env, cache=self.cache))

        self.surface = Surface(Feature(FEATURE.Config, built))
        self.surface.gateway.metrics_arena = SimpleNamespace(collect=lambda: ())

    async def ask(self, method: str, target: str) -> Any:
        """What an admin is answered."""
        raw = build(method, target, {"Host": "x"})
        exchange = FakeExchange(parse(raw, EndpointTable(self.surface.gateway.table), 1 << 20))
        assert exchange.head.endpoint is not None
        answering = exchange.head.endpoint.handler(cast("Exchange", exchange))
        if asyncio.iscoroutine(answering):
            await answering
        return exchange.json()


@pytest.fixture
def shown() -> Iterator[Shown]:
    """An empty cache."""
    made = Shown()
    yield made
    made.segment.close()
    made.table.close()


@pytest.mark.parametrize("prefix", ["/api/v1", "/v1"])
def test_numbers_and_flush(shown: Shown, prefix: str) -> None:
    """What lies there now, and what was counted since the start; a flush leaves the counts."""
    cache = shown.cache
    told = asyncio.run(shown.ask("GET", f"{prefix}/cache/stats"))
    nothing = {"calls": 0, "tokens": 0, "cost_usd": 0.0}
    assert (told.pop("saved"), told.pop("saved_by")) == (nothing, {})
    assert set(told.values()) == {0, None}
    assert told["tier"] is None
    for n in range(1500):
        cache.keep(n.to_bytes(16, "big"), b"x" * 10, 10.0, cache.generation)
    for hit in (True, False, True, True):
        cache.count(hit=hit)
    told = asyncio.run(shown.ask("GET", f"{prefix}/cache/stats"))
    assert (told["total_hits"], told["total_misses"], told["hit_rate"]) == (3, 1, 0.75)
    assert (told["total_kept"], told["bytes"]) == (1500, 10 * told["entries"])
    assert told["entries"] + told["evictions"] == 1500
    assert asyncio.run(shown.ask("DELETE", f"{prefix}/cache")) == {"status": "flushed"}
    told = asyncio.run(shown.ask("GET", f"{prefix}/cache/stats"))
    assert (told["entries"], told["bytes"], told["total_hits"]) == (0, 0, 3)


def test_what_is_saved_is_summed_over_the_host(shown: Shown) -> None:
    """By the way it was saved, whichever process and model it was."""
    rows: dict[str, list[tuple[dict[str, str], float]]] = {
        "tpo_saved_calls_total": [({"by": "hit"}, 2), ({"by": "coalesced"}, 3)],
        "tpo_saved_tokens_total": [({"by": "hit"}, 20), ({"by": "coalesced"}, 30)],
        "tpo_saved_cost_usd_total": [
            ({"by": "hit", "model": "a"}, 0.25), ({"by": "hit", "model": "b"}, 0.5),
        ],
        "tpo_calls_total": [({"by": "hit"}, 1000)],
    }  # fmt: skip
    families = [
        SimpleNamespace(
            name=name,
            samples=[SimpleNamespace(labels=tuple(of.items()), value=float(n)) for of, n in some],
        )
        for name, some in rows.items()
    ]
    shown.surface.gateway.metrics_arena = SimpleNamespace(collect=lambda: families)
    told = asyncio.run(shown.ask("GET", "/api/v1/cache/stats"))
    assert told["saved"] == {"calls": 5, "tokens": 50, "cost_usd": 0.75}
    assert told["saved_by"] == {
        "hit": {"calls": 2, "tokens": 20, "cost_usd": 0.75},
        "coalesced": {"calls": 3, "tokens": 30, "cost_usd": 0.0},
    }
