"""Chat answered inside the gateway: HTTP, pipeline and reply without an upstream."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.load import Shape
from benchmarks.report import Row, Series
from benchmarks.scenario import RELAYED, Scenario
from benchmarks.targets import Live


def run(bench: Bench) -> dict[str, Series]:
    """Measure the echo backend beside the bare mock, which is an HTTP server and nothing else."""

    def measure(live: Live) -> Row:
        return bench.measure(live, Shape(bench.options.conns))

    return bench.compare(["direct", "tpo-echo"], measure)


SCENARIO = Scenario(
    title="HTTP echo",
    method="As the unary relay, answered by the gateway's own echo backend.",
    columns=tuple(column for column in RELAYED if not column.over),
    run=run,
)
