"""What engines need not compute again when a conversation comes back to the one that knows it.

Many conversations take their turns at the same time before two engines, each of which has room for
the words of about half of them.  The engine says in its usage how much of a prompt it remembered.
The engines are the simulator's; ``engine_affinity`` has real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import aiohttp
import uvloop

from benchmarks.bench import Bench, say, short
from benchmarks.load import tag
from benchmarks.remembering import CACHED, FAILED, P50, Remembered
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import LABELS, Live, Skipped

TARGETS = ("tpo-spread", "tpo-sticky", "tpo-prefixed")
SESSIONS, TURNS, WORDS = 20, 10, 80
THINKS_S = 0.2
SEED = 7


def run(bench: Bench) -> dict[str, Series]:
    """Hold the same conversations through gateways of one and of two workers."""
    return hold(bench, TARGETS, TURNS, WORDS, {})


def hold(
    bench: Bench, targets: Sequence[str], turns: int, words: int, more: Mapping[str, Any]
) -> dict[str, Series]:
    """Hold conversations through each target; ``more`` are further fields of every body."""
    found: dict[str, Series] = {}
    turns = 3 if bench.options.quick else turns
    for number in range(bench.options.rounds):
        for target in bench.wanted(targets):
            for workers in (1, 2):
                name = f"{LABELS[target]}, {workers} worker{'s' * (workers > 1)}"
                series = found.setdefault(name, Series())
                try:
                    with bench.place.start(target, workers=workers) as live:
                        row = uvloop.run(converse(live, SEED + number, turns, words, more))
                except Skipped as reason:
                    series.skipped = str(reason)
                    continue
                series.rows.append({"round": number} | row)
                say(f"  {number + 1} {name}: {short(series.rows[-1])}")
    return found


async def converse(live: Live, seed: int, turns: int, words: int, more: Mapping[str, Any]) -> Row:
    """Hold all conversations at the same time, each turn after the answer to the last."""
    run_tag = tag()
    connector = aiohttp.TCPConnector(limit=SESSIONS)
    async with aiohttp.ClientSession(live.url, connector=connector) as session:
        asked = Remembered(session)

        async def talk(who: int) -> None:
            rng = Random(seed * 1_000 + who)
            said: list[dict[str, Any]] = []
            for turn in range(turns):
                await asyncio.sleep(rng.uniform(0, 2 * THINKS_S))
                text = " ".join(f"w{rng.randrange(10_000)}" for _ in range(words))
                said.append({"role": "user", "content": f"{run_tag} {who} {turn}: {text}"})
                # The first of a conversation is new to everybody.
                head = {"X-Session-Id": f"{run_tag}-{who}"}
                answer = await asked.ask(said, head, counts=turn > 0, more=more)
                if answer is None:
                    return
                said.append(answer)

        await asyncio.gather(*(talk(who) for who in range(SESSIONS)))
    return {"turns": SESSIONS * turns} | asked.row()


SCENARIO = Scenario(
    title="Conversations before two engines",
    method=f"{SESSIONS} conversations of {TURNS} turns at the same time, {WORDS} words a turn, "
    f"{THINKS_S:g} s of thinking on average (seed {SEED} plus the round), before two simulated "
    "engines whose memory holds about half of them each; from the second turns on. Remembered is "
    "what the engines say in their usage.",
    columns=(
        Column("turns", "turns"),
        CACHED,
        P50,
        FAILED,
    ),
    run=run,
    plot=CACHED,
)
