"""Pipelines of a program of one's own share answers in a Redis, as gateways do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import tpo_mp
from tests.support.redis import RedisServer
from tests.support.wait import until
from tpo_mp.library import LocalPipeline
from tpo_mp.store import redis_link
from tpo_mp.types import Call


@pytest.fixture(scope="module")
def server(short_tmp: Path) -> Iterator[RedisServer]:
    """What they share."""
    with RedisServer(short_tmp / "library-redis") as running:
        yield running


class Own:
    """A backend that counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def infer(self, call: Call) -> str:
        """Say how often it was asked."""
        self.asked += 1
        return f"answer {self.asked} to {call.model}"


def pipeline(own: Own, server: RedisServer) -> LocalPipeline:
    """One with a backend of its caller's."""
    tier = {"redis_url": server.url, "cache_wait_s": 1.0}
    return tpo_mp.spawn_pipeline(own, {"distributed": tier}, model="mine")


def test_what_one_pipeline_was_answered_another_finds(server: RedisServer) -> None:
    """Also when the first is gone; nothing of it stays behind, and Redis may be away."""
    own = Own()

    async def story() -> None:
        async with pipeline(own, server) as one:
            await until(lambda: one.tier is not None and one.tier.generation, 10, "Redis")
            said = (await one.infer("hi", temperature=0)).text
            await until(lambda: server.ask("DBSIZE") == 2, 10, "the answer in Redis")
        async with pipeline(own, server) as two:
            await until(lambda: two.tier is not None and two.tier.generation, 10, "Redis")
            assert (await two.infer("hi", temperature=0)).text == said
            streamed = two.stream("hi", temperature=0)
            assert "".join([piece async for piece in streamed]) == said
            assert own.asked == 1
            assert (await two.infer("hi", temperature=1)).text != said
            server.kill()
            assert (await two.infer("and now", temperature=0)).text == "answer 3 to mine"
        assert not redis_link._closing

    asyncio.run(story())
