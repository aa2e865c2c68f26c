"""The cache of a running gateway: one for both workers, over the death of one, and never wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartGateway
from tests.support.effort import LONG
from tests.support.gateway import Gateway, ask_sure
from tests.support.raw import RawClient, chat
from tests.support.shards import each_shard
from tests.support.toml import NO_RETRIES, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
STATS, FLUSH = "/api/v1/cache/stats", "/api/v1/cache"
PRICES = "[prices.models]\nup-1 = { input = 1, output = 2 }\n"
CALLS, QUESTIONS = (100_000, 20_000) if LONG else (1_000, 300)
KEYS = {"a": "key-of-team-a-0123", "b": "key-of-team-b-0123"}


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers with what ships, and a price."""
    config = backend("up", origin.base_url, "*") + PRICES + NO_RETRIES
    with Gateway(short_tmp / "cache", config=config, workers=2) as running:
        yield running


def test_every_worker_answers_what_any_worker_was_answered(
    gateway: Gateway, origin: Upstream
) -> None:
    """Forty calls of both workers cost the upstream one request; the books know why."""
    with each_shard(gateway.url, model="up-1") as clients:
        answered_alike(gateway, origin, clients)


def answered_alike(
    gateway: Gateway, origin: Upstream, clients: tuple[RawClient, RawClient]
) -> None:
    """Ask the same through both by turns, and look at all that counts it."""
    before = origin.counters.requests
    stats = gateway.ask(STATS).json()
    names = ("orchestrator_cache_hits_total", "tpo_saved_tokens_total", "tpo_saved_cost_usd_total",
             "orchestrator_inference_cost_usd_total")  # fmt: skip
    counted = {name: gateway.metric(name) for name in names}
    first = ask_sure(gateway, "once")
    assert first.headers["x-tpo-cache"] == "miss"
    told = [ask_sure(gateway, "once", through=clients[n % 2]) for n in range(40)]
    assert {reply.headers["x-tpo-cache"] for reply in told} == {"hit"}
    assert {reply.headers["x-tpo-shard"] for reply in told} == {"0", "1"}
    assert not any("x-tpo-backend" in reply.headers for reply in told)
    assert origin.counters.requests == before + 1
    ids = {reply.json()["id"] for reply in told}
    assert len(ids) == 40
    assert first.json()["id"] not in ids
    assert {str(reply.json() | {"id": ""}) for reply in told} == {str(first.json() | {"id": ""})}
    after = gateway.ask(STATS).json()
    assert after["total_hits"] - stats["total_hits"] == 40
    assert after["total_misses"] - stats["total_misses"] == 1
    assert after["entries"] >= 1

    def saved() -> bool:
        now = gateway.ask(STATS).json()
        more = {name: now["saved"][name] - stats["saved"][name] for name in now["saved"]}
        for name, total in now["saved"].items():
            assert total == pytest.approx(sum(one[name] for one in now["saved_by"].values()))
        return more == {"calls": 40, "tokens": 40 * 12, "cost_usd": pytest.approx(40 * 17e-6)}

    wait_for(saved, 10, "what was saved")
    grown = {name: gateway.metric(name) - counted[name] for name in names}
    assert grown["orchestrator_cache_hits_total"] == 40
    assert grown["tpo_saved_tokens_total"] == 40 * 12
    assert grown["tpo_saved_cost_usd_total"] == pytest.approx(40 * 17e-6)
    assert grown["orchestrator_inference_cost_usd_total"] == pytest.approx(17e-6)

    calls = {reply.headers["x-tpo-call-id"] for reply in (first, *told)}

    def audited() -> bool:
        found = gateway.ask("/api/v1/audit?limit=1000").json()["entries"]
        found = [entry for entry in found if entry["id"] in calls]
        told = Counter((e["cache"], round((e["cost_usd"] or 0.0) * 1e6)) for e in found)
        return told == {("hit", 0): 40, ("miss", 17): 1}

    wait_for(audited, what="the records of all calls")


def test_a_dead_worker_takes_no_answer_with_it(gateway: Gateway, origin: Upstream) -> None:
    """Neither worker's: both are killed, one after the other."""
    texts = [f"kept {n}" for n in range(10)]
    for text in texts:
        assert ask_sure(gateway, text).headers["x-tpo-cache"] == "miss"
    before = origin.counters.requests
    for number in (0, 1):
        old = gateway.worker_pids()[number]
        os.kill(old, signal.SIGKILL)
        gateway.replaced(number, old)
        assert {ask_sure(gateway, text).headers["x-tpo-cache"] for text in texts} == {"hit"}
    assert origin.counters.requests == before


def test_whole_and_stream_answer_for_each_other(gateway: Gateway) -> None:
    """The words are the same, and usage is shown to whoever asked."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    for first, second in (({}, usage), (usage, {}), ({"stream": True}, usage)):
        text = f"form {first} {second}"
        one, two = (ask_sure(gateway, text, **form) for form in (first, second))
        assert (one.headers["x-tpo-cache"], two.headers["x-tpo-cache"]) == ("miss", "hit")
        whole, stream = (one, two) if not first else (two, one)
        said = f"answer to {text}"
        if not first or not second:
            assert whole.json()["choices"][0]["message"]["content"] == said
            assert whole.json()["usage"]["total_tokens"] == 12
        assert stream.events[-1] == b"[DONE]"
        if second is usage:
            assert two.events[-2].count(b'"total_tokens":12') == 1
        assert b"answer" in b"".join(stream.events)
        assert any(b'"total_tokens"' in e for e in two.events) is (second is usage)


def test_one_worker_and_two_find_the_same_answers(
    gateway: Gateway, origin: Upstream, start_gateway: StartGateway, rng: Random
) -> None:
    """Each question costs one upstream call, and each repeat is a hit with its own answer."""
    asked = [f"subject {min(int(rng.paretovariate(0.7)), 60)}" for _ in range(200)]
    alone = start_gateway(config=backend("up", origin.base_url, "*") + NO_RETRIES, workers=1)
    told: list[list[tuple[str, str]]] = []
    for one in (alone, gateway):
        before = origin.counters.requests
        first: dict[str, Any] = {}
        replies = [ask_sure(one, text) for text in asked]
        for text, reply in zip(asked, replies, strict=True):
            first.setdefault(text, reply.json()["choices"])
        assert origin.counters.requests - before == len(set(asked))
        assert all(r.json()["choices"] == first[q] for q, r in zip(asked, replies, strict=True))
        told.append([(q, r.headers["x-tpo-cache"]) for q, r in zip(asked, replies, strict=True)])
    assert told[0] == told[1]
    assert {how for _, how in told[0]} == {"hit", "miss"}


def test_no_question_is_asked_by_both_workers(
    gateway: Gateway, origin: Upstream, rng: Random
) -> None:
    """Sixty-four clients, few questions asked often and many once, on whichever worker."""
    asked = [f"rank {min(int(rng.paretovariate(1)), QUESTIONS)}" for _ in range(CALLS)]
    before = origin.counters.requests
    told = asyncio.run(asked_at_once(gateway, asked, rng))
    assert origin.counters.requests - before == len(set(asked)), told
    assert told["miss"] == len(set(asked))
    assert told.keys() <= {"miss", "hit", "coalesced"}


async def asked_at_once(gateway: Gateway, asked: list[str], rng: Random) -> Counter[str]:
    """Ask everything, each in a session of its own; what the answers say of the cache."""
    told: Counter[str] = Counter()
    rest = iter(asked)
    async with aiohttp.ClientSession(gateway.url) as client:

        async def some() -> None:
            for text in rest:
                body = chat(text, "up-1", temperature=0)
                head = {"x-session-id": f"s{rng.randrange(1 << 30)}"}
                async with client.post(CHAT, json=body, headers=head) as reply:
                    said = (await reply.json())["choices"][0]["message"]["content"]
                    assert said == f"answer to {text}"
                    told[reply.headers["x-tpo-cache"]] += 1

        await asyncio.gather(*(some() for _ in range(64)))
    return told


def test_sessions_of_another_shard_are_answered_too(gateway: Gateway, origin: Upstream) -> None:
    """A call that is served elsewhere says so the same way."""
    ask_sure(gateway, "in a session")
    before = origin.counters.requests
    told = [ask_sure(gateway, "in a session", {"x-session-id": f"s{n}"}) for n in range(12)]
    assert {reply.headers["x-tpo-cache"] for reply in told} == {"hit"}
    assert origin.counters.requests == before


def test_clients_and_calls_that_opt_out(gateway: Gateway, origin: Upstream) -> None:
    """Nothing is kept or told again; a refresh is kept; a wrong order is refused."""
    ours = {"x-tpo-cache": "no-store"}
    for headers in (ours, {"cache-control": "no-store"}):
        for _ in range(2):
            reply = ask_sure(gateway, "secret", headers)
            assert "x-tpo-cache" not in reply.headers
    assert ask_sure(gateway, "secret").headers["x-tpo-cache"] == "miss"
    for _ in range(2):
        assert (
            ask_sure(gateway, "secret", {"x-tpo-cache": "no-cache"}).headers["x-tpo-cache"]
            == "miss"
        )
    assert ask_sure(gateway, "secret").headers["x-tpo-cache"] == "hit"
    refused = ask_sure(gateway, "secret", {"x-tpo-cache": "perhaps"})
    assert (refused.status, refused.json()["error"]["param"]) == (400, "x-tpo-cache")
    before = origin.counters.requests
    for _ in range(3):
        assert "x-tpo-cache" not in ask_sure(gateway, "warm", temperature=0.7).headers
    assert origin.counters.requests == before + 3


def test_errors_and_broken_streams_are_asked_again(gateway: Gateway, origin: Upstream) -> None:
    """What the upstream could not answer is not its answer."""
    for mode, more in (("status", {}), ("stream_error", {"stream": True}), ("cut", {}),
                       ("no_done", {"stream": True})):  # fmt: skip
        origin.queue(mode)
        assert ask_sure(gateway, f"bad {mode}", **more).headers["x-tpo-cache"] == "miss"
        good = ask_sure(gateway, f"bad {mode}", **more)
        assert (good.status, good.headers["x-tpo-cache"]) == (200, "miss")
        assert ask_sure(gateway, f"bad {mode}", **more).headers["x-tpo-cache"] == "hit"


def test_a_flush_is_heard_by_every_worker(gateway: Gateway) -> None:
    """At once."""
    ask_sure(gateway, "flushed")
    assert gateway.ask(STATS).json()["entries"] > 0
    flushed = gateway.delete(FLUSH)
    assert (flushed.status, flushed.json()) == (200, {"status": "flushed"})
    assert gateway.ask(STATS).json()["entries"] == 0
    assert ask_sure(gateway, "flushed").headers["x-tpo-cache"] == "miss"
    with each_shard(gateway.url, model="up-1") as clients:
        told = [ask_sure(gateway, "flushed", through=client) for client in clients]
    assert {reply.headers["x-tpo-cache"] for reply in told} == {"hit"}


def test_tenants_and_time_keep_answers_apart(start_gateway: StartGateway, origin: Upstream) -> None:
    """Each tenant asks for itself, and an answer grows old; one worker counts as two do."""
    config = (
        backend("up", origin.base_url, "*")
        + "[stages.cache]\nttl_s = 1.5\n[auth]\nenabled = true\n"
        + "".join(f'[[auth.keys]]\nid = "{k}"\nsecret = {{ env = "KEY_{k}" }}\n' for k in KEYS)
    )
    env = {f"KEY_{name}": key for name, key in KEYS.items()}
    running = start_gateway(config=config, env=env, workers=1)
    a, b = ({"authorization": f"Bearer {key}"} for key in KEYS.values())
    for who in (a, b):
        assert ask_sure(running, "mine", who).headers["x-tpo-cache"] == "miss"
    assert running.ask(STATS, None, a).status == 403

    def known() -> bool:  # a machine may stand still for longer than an answer lives
        told = [ask_sure(running, "mine", who).headers["x-tpo-cache"] for who in (a, b, a, b)]
        return told == ["hit"] * 4

    wait_for(known, 10, "answers that are known")
    wait_for(
        lambda: ask_sure(running, "mine", a).headers["x-tpo-cache"] == "miss", 10, "an old answer"
    )
