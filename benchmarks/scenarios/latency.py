"""One connection, one request at a time: what a gateway adds to the wait."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.load import Shape
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario, everyone
from benchmarks.targets import Live

ADDED = Column("added p99 ms", "p99_ms", minus="direct")


def run(bench: Bench) -> dict[str, Series]:
    """Compare all targets with the upstream itself."""

    def measure(live: Live) -> Row:
        return bench.measure(live, Shape(conns=1, extra=live.extra))

    return bench.compare(everyone(bench), measure)


SCENARIO = Scenario(
    title="Latency at one connection",
    method="Unary requests one after another; added = the gateway's percentile minus that of the "
    "upstream itself in the same round.",
    columns=(
        Column("p50 ms", "p50_ms"),
        Column("added p50 ms", "p50_ms", minus="direct"),
        Column("p99 ms", "p99_ms"),
        ADDED,
        Column("requests/s", "rps"),
        Column("failed", "failed"),
    ),
    plot=ADDED,
    run=run,
)
