"""Two gateways that share a Redis: what one was answered the other knows; Redis may be ill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway, ask_sure
from tests.support.raw import RawClient, RawReply, ask
from tests.support.redis import RedisServer
from tests.support.shards import each_shard
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import unhurried, wait_for

CHAT = "/v1/chat/completions"
STATS, FLUSH = "/api/v1/cache/stats", "/api/v1/cache"
KEYS = {"a": "key-of-team-a-0123", "b": "key-of-team-b-0123", "admin": "key-of-an-admin-01"}
ADMIN = {"authorization": f"Bearer {KEYS['admin']}"}
LOOKUPS = "tpo_cache_tier_lookups_total"
WAIT_S = 1.0
"""The longest that a call may wait for Redis; a machine may stand still for longer."""
NEW = count()


@pytest.fixture(scope="module")
def redis(short_tmp: Path) -> Iterator[RedisServer]:
    """What the gateways share."""
    with RedisServer(short_tmp / "tier-redis") as running:
        yield running


@pytest.fixture(scope="module")
def gateways(
    short_tmp: Path, origin: Upstream, redis: RedisServer
) -> Iterator[tuple[Gateway, Gateway]]:
    """Two hosts of two workers each; they wait longer for Redis than they would elsewhere."""
    config = backend("up", origin.base_url, "*") + NO_RETRIES
    config += section("[distributed]", redis_url=redis.url, cache_wait_s=WAIT_S)
    config += section("[auth]", enabled=True)
    for name, key in KEYS.items():
        config += section("[[auth.keys]]", id=name, tenant=name, secret=key, admin=name == "admin")
    folder = short_tmp / "tier"
    with (
        Gateway(folder / "1", config=config, workers=2) as one,
        Gateway(folder / "2", config=config, workers=2) as two,
    ):
        yield one, two


@pytest.fixture
def pair(gateways: tuple[Gateway, Gateway]) -> tuple[Gateway, Gateway]:
    """Both, once all their workers reach Redis."""
    for gateway in gateways:
        wait_for(lambda g=gateway: degraded(g) == [], 20, "Redis to be reached")  # type: ignore[misc]
    return gateways


def degraded(gateway: Gateway) -> list[str]:
    """What a gateway lacks."""
    missing: list[str] = ask(gateway.ops, "/ready").json()["degraded"]
    return missing


def say(gateway: Gateway, text: str, who: str = "a", **more: Any) -> RawReply:
    """One chat at temperature 0."""
    head = {"authorization": f"Bearer {KEYS[who]}"}
    reply = ask_sure(gateway, text, head, **more)
    assert reply.status == 200, reply.body
    return reply


def said(gateway: Gateway, text: str, who: str = "a", **more: Any) -> str:
    """What became of one, whose answer is right."""
    reply = say(gateway, text, who, **more)
    assert f"answer to {text}" in reply.json()["choices"][0]["message"]["content"]
    return reply.headers["x-tpo-cache"]


def new(text: str) -> str:
    """Words that nobody said before."""
    return f"{text} {next(NEW)}"


def kept(gateway: Gateway, redis: RedisServer, text: str, who: str = "a") -> bytes:
    """Ask, and wait until the answer lies in Redis; the name it has there."""
    wait_for(lambda: redis.ask("EXISTS", "tpo:1:g"), 10, "a generation")
    before = set(redis.ask("KEYS", "tpo:1:a:*"))
    assert said(gateway, text, who) == "miss"
    names: set[bytes] = wait_for(
        lambda: set(redis.ask("KEYS", "tpo:1:a:*")) - before, 4, "the answer in Redis"
    )
    assert len(names) == 1
    return names.pop()


def put(gateway: Gateway, redis: RedisServer, text: str) -> str:
    """Words whose answer lies in Redis, if not at once then when that is in time."""

    def asked() -> str:
        words = new(text)
        kept(gateway, redis, words)
        return words

    return unhurried(asked, WAIT_S / 2)


def known_to_the_other(pair: tuple[Gateway, Gateway], redis: RedisServer, text: str) -> None:
    """What the first was answered the second finds, if not at once then when it is in time."""

    def known() -> None:
        assert said(pair[1], put(pair[0], redis, text)) == "hit"

    unhurried(known, WAIT_S / 2)


def looked(gateway: Gateway, result: str) -> float:
    """How many lookups in Redis came out so."""
    return gateway.metric(LOOKUPS, result=result)


def test_what_one_gateway_was_answered_the_other_knows(
    pair: tuple[Gateway, Gateway], origin: Upstream, redis: RedisServer
) -> None:
    """Each worker of it, whole or streamed, but no other tenant; then it has it by itself."""
    ours = {"authorization": f"Bearer {KEYS['a']}"}
    with each_shard(pair[1].url, model="up-1", headers=ours) as clients:
        unhurried(partial(known_by_both, pair, origin, redis, clients), WAIT_S / 2)


def known_by_both(
    pair: tuple[Gateway, Gateway],
    origin: Upstream,
    redis: RedisServer,
    clients: tuple[RawClient, RawClient],
) -> None:
    """What the first was answered, asked of each worker of the second by turns."""
    one, two = pair
    shared = new("shared")
    kept(one, redis, shared)
    before = origin.counters.requests
    stats = two.ask(STATS, None, ADMIN).json()
    found = looked(two, "hit")
    assert said(two, shared) == "hit"
    assert looked(two, "hit") == found + 1
    told = [say(two, shared, through=clients[n % 2]) for n in range(30)]
    assert {reply.headers["x-tpo-cache"] for reply in told} == {"hit"}
    assert {reply.headers["x-tpo-shard"] for reply in told} == {"0", "1"}
    assert looked(two, "hit") == found + 1
    assert say(two, shared, stream=True).events[-1] == b"[DONE]"
    assert origin.counters.requests == before
    now = two.ask(STATS, None, ADMIN).json()
    assert now["tier"]["reachable"] is True
    assert now["tier"]["total_hits"] == stats["tier"]["total_hits"] + 1
    assert now["total_hits"] == stats["total_hits"] + 32
    assert said(two, shared, "b") == "miss"
    assert origin.counters.requests == before + 1
    assert one.metric("tpo_cache_tier_wait_seconds_count") > 0


def test_a_lie_in_redis_is_no_answer(
    pair: tuple[Gateway, Gateway], origin: Upstream, redis: RedisServer
) -> None:
    """Another tenant's value, another question's, or a damaged one."""
    unhurried(partial(lied_to, pair, origin, redis), WAIT_S / 2)


def lied_to(pair: tuple[Gateway, Gateway], origin: Upstream, redis: RedisServer) -> None:
    """Four lies, each found out."""
    one, two = pair
    mine, third, fourth = new("mine"), new("third"), new("fourth")
    names = [kept(one, redis, mine, who) for who in ("a", "b")]
    names += [kept(one, redis, text) for text in (third, fourth)]
    values = [redis.ask("GET", name) for name in names]
    lies = [values[1], values[0], values[3], values[3][:-9] + b"!" + values[3][-8:]]
    for name, lie in zip(names, lies, strict=True):
        redis.ask("SET", name, lie, "PX", "60000")
    before, bad = origin.counters.requests, looked(two, "bad")
    asked = ((mine, "a"), (mine, "b"), (third, "a"), (fourth, "a"))
    assert [said(two, text, who) for text, who in asked] == ["miss"] * 4
    assert (origin.counters.requests, looked(two, "bad")) == (before + 4, bad + 4)


def test_a_flush_of_one_gateway_empties_redis_for_both(
    pair: tuple[Gateway, Gateway], redis: RedisServer
) -> None:
    """What the other had not found before is asked again."""
    one, two = pair
    flushed = put(one, redis, "flushed")
    assert one.delete(FLUSH, ADMIN).status == 200
    assert said(two, flushed) == "miss"
    emptied = put(one, redis, "emptied")
    redis.ask("FLUSHALL")
    assert said(two, emptied) == "miss"
    assert said(one, emptied) == "hit"  # as it was asked before Redis lost everything


def test_the_successor_of_a_dead_worker_reaches_redis(
    pair: tuple[Gateway, Gateway], redis: RedisServer
) -> None:
    """Both workers of the other gateway are replaced, and find what is there."""
    one, two = pair
    for victim in two.worker_pids():
        outlived = [put(one, redis, "outlived") for _ in range(3)]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda pid=victim: pid not in two.worker_pids(), 20, "a successor")  # type: ignore[misc]
        assert any(finds(two, text) for text in outlived), "each of three times too late"


def finds(gateway: Gateway, text: str) -> bool:
    """Whether an answer is known, once all workers are at work and reach Redis."""
    wait_for(lambda: degraded(gateway) == [], 20, "all workers at work")
    return said(gateway, text) == "hit"


def kill_worker(gateway: Gateway) -> int:
    """Kill the first worker; its process id."""
    victim = gateway.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.mark.parametrize("ill", ["stopped", "killed"])
def test_calls_are_answered_without_redis(
    pair: tuple[Gateway, Gateway], redis: RedisServer, ill: str
) -> None:
    """They say so, leave it alone, and find it again; no answer is a wrong one."""
    one, two = pair
    before = put(one, redis, f"before {ill}")
    redis.stop() if ill == "stopped" else redis.kill()
    try:
        asked = 0

        def noticed() -> bool:
            nonlocal asked
            asked += 1
            assert said(two, f"{ill} {asked}") == "miss"
            return degraded(two) == ["redis"]

        wait_for(noticed, 30, "Redis to be missed")
        stats = two.ask(STATS, None, ADMIN).json()
        assert stats["tier"]["total_unavailable"] > 0
        assert said(one, before) == "hit"
        refused = two.delete(FLUSH, ADMIN)
        assert (refused.status, refused.json()["error"]["code"]) == (503, "redis_away")
        if ill == "killed":  # who starts now finds none at all
            two.replaced(0, kill_worker(two))
            wait_for(lambda: degraded(two) == ["redis"], 20, "Redis to be missed again")
            assert ask(two.ops, "/ready").status == 200
            told = [say(two, f"without {n}") for n in range(10)]
            assert {reply.headers["x-tpo-cache"] for reply in told} == {"miss"}
    finally:
        redis.go_on() if ill == "stopped" else redis.start()
    for gateway in pair:
        wait_for(lambda g=gateway: degraded(g) == [], 20, "Redis to be found again")  # type: ignore[misc]
    known_to_the_other(pair, redis, f"after {ill}")
