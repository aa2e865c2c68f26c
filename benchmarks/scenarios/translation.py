"""Streams of 64 events to clients of another dialect than the upstream: what translation costs."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.load import Shape
from benchmarks.payload import MESSAGES, PATH
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live

PATHS = {"tpo": PATH, "tpo-messages": MESSAGES}


def run(bench: Bench) -> dict[str, Series]:
    """Ask the same gateway in the upstream's dialect and in another."""

    def measure(live: Live) -> Row:
        shape = Shape(bench.options.conns, stream=True, path=PATHS[live.name])
        return bench.measure(live, shape)

    return bench.compare(list(PATHS), measure)


SCENARIO = Scenario(
    title="Translated stream, 64 events",
    method="As the SSE relay; the upstream speaks chat completions, one load asks for those and "
    "gets its bytes, the other asks Anthropic messages and gets every event translated.",
    columns=(
        Column("CPU µs", "cpu_us"),
        Column("CPU / passed through", "cpu_us", over="tpo"),
        Column("requests/s", "rps"),
        Column("p50 ms", "p50_ms"),
        Column("p99 ms", "p99_ms"),
        Column("failed", "failed"),
    ),
    run=run,
)
