"""What an engine need not compute again when calls that begin alike are sent in a row.

Clients ask as soon as they are answered, each time with another of a few long instructions, of
which the engine remembers less than there are.  The engine says in its usage how much of a prompt
it remembered.
"""

from __future__ import annotations

import asyncio
from random import Random
from time import monotonic

import aiohttp
import uvloop

from benchmarks.bench import Bench, say, short
from benchmarks.load import tag
from benchmarks.remembering import CACHED, FAILED, P50, Remembered
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live, Skipped

TARGETS = ("tpo-mixed", "tpo-batched", "tpo-grouped")
INSTRUCTIONS, WORDS, CLIENTS, CALLS = 16, 1_500, 48, 1_200
SEED = 45


def run(bench: Bench) -> dict[str, Series]:
    """Ask the same mix of a gateway of two workers without and with the stage."""
    found: dict[str, Series] = {}
    for number in range(bench.options.rounds):
        for target in bench.wanted(TARGETS):
            series = found.setdefault(target, Series())
            calls = CALLS // 6 if bench.options.quick else CALLS
            try:
                with bench.place.start(target, workers=2) as live:
                    row = uvloop.run(ask_all(live, Random(SEED + number), calls))
            except Skipped as reason:
                series.skipped = str(reason)
                continue
            series.rows.append({"round": number} | row)
            say(f"  {number + 1} {target}: {short(series.rows[-1])}")
    return found


async def ask_all(live: Live, rng: Random, calls: int) -> Row:
    """Ask ``calls`` questions, ``CLIENTS`` at a time."""
    run_tag = tag()
    openings = [f"{run_tag} {n}:" + f" word{n}" * WORDS for n in range(INSTRUCTIONS)]
    order = iter([rng.randrange(INSTRUCTIONS) for _ in range(calls)])
    began = monotonic()
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(live.url, connector=connector) as session:
        asked = Remembered(session)

        async def client(name: int) -> None:
            for number, which in enumerate(order):
                await asked.ask((
                    {"role": "system", "content": openings[which]},
                    {"role": "user", "content": f"question {number} of client {name}"},
                ))  # fmt: skip

        await asyncio.gather(*(client(name) for name in range(CLIENTS)))
    return {"calls": calls, "rps": round(calls / (monotonic() - began), 1)} | asked.row()


SCENARIO = Scenario(
    title="Calls sent together",
    method=f"{CALLS} chats of {CLIENTS} clients, each under one of {INSTRUCTIONS} instructions of "
    f"{WORDS} words at random (seed {SEED} plus the round), to a simulated engine whose memory "
    "holds about six of them; two workers. Remembered is what the engine says in its usage.",
    columns=(
        Column("calls", "calls"),
        CACHED,
        Column("over each at once", "cached_pct", over="tpo-mixed"),
        Column("calls/s", "rps"),
        P50,
        FAILED,
    ),
    run=run,
    plot=CACHED,
)
