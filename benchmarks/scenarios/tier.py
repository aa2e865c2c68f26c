"""Second tier: how long Redis keeps a call that looks for an answer there."""

from __future__ import annotations

import uvloop

from benchmarks import tiers
from benchmarks.bench import Bench, say, short
from benchmarks.procs import on_cores
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario

LOOKUPS = 2_000


def run(bench: Bench) -> dict[str, Series]:
    """Look up in each state, once a round."""
    found: dict[str, Series] = {}
    for number in range(bench.options.rounds):
        for state in bench.wanted([f"Redis {state}" for state in tiers.STATES]):
            series = found.setdefault(state, Series())
            try:
                with on_cores(bench.cores.for_both()):
                    row = uvloop.run(tiers.measure(state.removeprefix("Redis "), LOOKUPS))
            except FileNotFoundError as reason:
                series.skipped = str(reason)
                continue
            series.rows.append({"round": number, **row})
            say(f"  {number + 1} {state}: {short(series.rows[-1])}")
    return found


SCENARIO = Scenario(
    title="Second tier",
    method=f"{LOOKUPS} lookups of answers that nobody kept, one after the other, in a Redis on a "
    "Unix socket: while it is well, while it holds its answers back (`CLIENT PAUSE`), and when it "
    f"was killed. The bound is `cache_wait_s`, {tiers.WAIT_S * 1e3:g} ms; asked is how many were "
    "sent to it at all.",
    columns=(
        Column("lookups", "lookups"),
        Column("asked", "asked"),
        Column("p50 ms", "p50_ms"),
        Column("p99 ms", "p99_ms"),
        Column("longest ms", "max_ms"),
    ),
    run=run,
)
