"""Shared-memory rings between two processes: round trips per second."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario

TARGET = "ring"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.ring`` once per round on both cores."""
    return bench.repeat(TARGET, "benchmarks.ring", bench.cores.for_both())


SCENARIO = Scenario(
    title="Ring round trips",
    method="Two processes on two cores, 64 records in flight, every record answered.",
    columns=(Column("round trips/s", "rps"),),
    run=run,
)
