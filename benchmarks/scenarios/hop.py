"""The price of a call whose session belongs to another shard.

Two workers share one core, so nothing is won by working side by side and the whole price shows.
"""

from __future__ import annotations

from benchmarks.bench import Bench, say, short
from benchmarks.load import Shape
from benchmarks.plan import Outcome, Phase, Session
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Skipped

TARGET = "tpo-echo"


def run(bench: Bench) -> dict[str, Series]:
    """Alternate own and foreign sessions over the same connections of the same processes."""
    if not bench.wanted([TARGET]):
        return {}
    phases: list[Phase] = [Phase(secs=1.0, session="own", label="warm-up")]
    for _ in range(bench.options.rounds):
        phases += [Phase(secs=bench.options.secs, session=side, label=side) for side in SIDES]
    series = Series()
    try:
        with bench.place.start(TARGET, workers=2) as live:
            seen = bench.load.phases(live.url, Shape(bench.options.conns), phases, live.pids())[1:]
    except (Skipped, RuntimeError) as reason:
        series.skipped = str(reason)
        say(f"  {TARGET}: skipped: {reason}")
        return {TARGET: series}
    for number, (own, foreign) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        series.rows.append(row(number, own, foreign))
        say(f"  {number + 1} {TARGET}: {short(series.rows[-1])}")
    return {TARGET: series}


def row(number: int, own: Outcome, foreign: Outcome) -> Row:
    """Set one pair of phases side by side."""
    return {
        "round": number,
        "own_cpu_us": round(own.cpu_us, 2),
        "foreign_cpu_us": round(foreign.cpu_us, 2),
        "hop_cpu_us": round(foreign.cpu_us - own.cpu_us, 2),
        "own_p50_ms": round(own.p50_ms, 4),
        "foreign_p50_ms": round(foreign.p50_ms, 4),
        "own_rps": round(own.rps, 1),
        "foreign_rps": round(foreign.rps, 1),
        "failed": own.non2xx + own.errors + foreign.non2xx + foreign.errors,
    }


SIDES: tuple[Session, Session] = ("own", "foreign")

SCENARIO = Scenario(
    title="Cross-shard hop",
    method="Two workers on one core, echo backend, our own client; every connection sends session "
    "ids that its replies' X-TPO-Shard proved to belong to its own shard or to the other one; "
    "hop = CPU per foreign request minus CPU per own request, phase by phase.",
    columns=(
        Column("own µs", "own_cpu_us"),
        Column("foreign µs", "foreign_cpu_us"),
        Column("hop µs", "hop_cpu_us"),
        Column("own p50 ms", "own_p50_ms"),
        Column("foreign p50 ms", "foreign_p50_ms"),
        Column("failed", "failed"),
    ),
    run=run,
)
