"""What the cache and the sharing of identical calls save on a workload that repeats itself.

Questions are drawn by a Zipf law, as public traces of search and chat traffic show them: few are
asked often, many once.  What was saved is counted at the upstream, and must be what the gateway
itself tells at ``/api/v1/cache/stats`` and in its answers.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

import aiohttp
import uvloop

from benchmarks.bench import Bench, say, short
from benchmarks.load import tag
from benchmarks.payload import PATH
from benchmarks.peers import KEY
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live, Skipped

TARGET = "tpo"
QUESTIONS, CALLS, AT_ONCE = 2_000, 6_000, 64
EXPONENT = 1.0
UPSTREAM_MS = 50.0
SEED = 6
STATS = "/api/v1/cache/stats"


def drawn(rng: Random, calls: int, questions: int, exponent: float) -> list[int]:
    """Draw the ranks of questions, 0 the most asked: rank r with weight 1 / (r + 1)^exponent."""
    sums = list(accumulate(1 / rank**exponent for rank in range(1, questions + 1)))
    return [bisect(sums, rng.random() * sums[-1]) for _ in range(calls)]


def run(bench: Bench) -> dict[str, Series]:
    """Replay the same workload to gateways of one and of two workers."""
    found: dict[str, Series] = {}
    if not bench.wanted([TARGET]):
        return found
    calls = CALLS // 6 if bench.options.quick else CALLS
    for number in range(bench.options.rounds):
        asked = drawn(Random(SEED + number), calls, QUESTIONS, EXPONENT)
        for workers in (1, 2):
            name = f"{TARGET}, {workers} worker{'s' * (workers > 1)}"
            series = found.setdefault(name, Series())
            bench.upstream.set({"latency_ms": UPSTREAM_MS})
            try:
                with bench.place.start(TARGET, workers=workers) as live:
                    before = bench.upstream.stats()["requests"]
                    told, stats = uvloop.run(replay(live, asked))
                    upstream = bench.upstream.stats()["requests"] - before
            except Skipped as reason:
                series.skipped = str(reason)
                continue
            finally:
                bench.upstream.set({"latency_ms": 0.0})
            series.rows.append({"round": number} | row(asked, told, stats, upstream))
            say(f"  {number + 1} {name}: {short(series.rows[-1])}")
    return found


def row(asked: Sequence[int], told: Counter[str], stats: dict[str, Any], upstream: int) -> Row:
    """Set what the upstream saw beside what the gateway told."""
    calls = len(asked)
    avoided = told["hit"] + told["coalesced"]
    return {
        "calls": calls,
        "questions": len(set(asked)),
        "upstream_calls": upstream,
        "hit_pct": round(100 * told["hit"] / calls, 2),
        "coalesced_pct": round(100 * told["coalesced"] / calls, 2),
        "saved_pct": round(100 * (calls - upstream) / calls, 2),
        "possible_pct": round(100 * (calls - len(set(asked))) / calls, 2),
        "untrue": abs(calls - upstream - avoided) + abs(stats["total_hits"] - told["hit"]),
        "failed": told["failed"],
    }


async def replay(live: Live, asked: Sequence[int]) -> tuple[Counter[str], dict[str, Any]]:
    """Ask everything, ``AT_ONCE`` at a time; answers what the answers said of themselves."""
    told: Counter[str] = Counter()
    rest = iter(asked)
    run_tag = tag()
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(live.url, connector=connector, headers=headers) as session:

        async def ask() -> None:
            for rank in rest:
                words = f"{run_tag}: what is known of subject number {rank}?"
                body = {"model": "m", "temperature": 0,
                        "messages": [{"role": "user", "content": words}]}  # fmt: skip
                async with session.post(PATH, json=body) as reply:
                    await reply.read()
                    said = reply.headers.get("x-tpo-cache", "none")
                    told[said if reply.status == 200 else "failed"] += 1

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        async with session.get(STATS) as reply:
            stats: dict[str, Any] = await reply.json()
    return told, stats


SCENARIO = Scenario(
    title="Calls saved",
    method=f"{CALLS} chats at temperature 0, {AT_ONCE} at once, on questions drawn by a Zipf law "
    f"(exponent {EXPONENT:g}, {QUESTIONS} questions, seed {SEED} plus the round) before a mock "
    f"upstream that takes {UPSTREAM_MS:g} ms; the default pipeline with one and with two workers. "
    "Saved is counted at the upstream; possible is what is left when each question is asked once; "
    "untrue is by how many calls the gateway's own counts differ from the upstream's.",
    columns=(
        Column("calls", "calls"),
        Column("questions", "questions"),
        Column("upstream calls", "upstream_calls"),
        Column("hits %", "hit_pct"),
        Column("shared %", "coalesced_pct"),
        Column("saved %", "saved_pct"),
        Column("possible %", "possible_pct"),
        Column("untrue", "untrue"),
        Column("failed", "failed"),
    ),
    run=run,
)
