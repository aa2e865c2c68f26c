"""Streams of 64 events through each gateway: what a stream costs."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.load import Shape
from benchmarks.report import Row, Series
from benchmarks.scenario import RELAYED, Scenario, everyone
from benchmarks.targets import Live


def run(bench: Bench) -> dict[str, Series]:
    """Compare all targets."""

    def measure(live: Live) -> Row:
        return bench.measure(live, Shape(bench.options.conns, stream=True, extra=live.extra))

    return bench.compare(everyone(bench), measure)


SCENARIO = Scenario(
    title="SSE relay, 64 events",
    method="As the unary relay, with stream=true; the upstream writes eight events per turn of "
    "its loop, so how many reads a stream costs depends on how far the gateway keeps up.",
    columns=RELAYED,
    plot=RELAYED[0],
    run=run,
)
