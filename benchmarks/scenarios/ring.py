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
    method="Two spinning processes on two cores, 64 records of 64 bytes in flight, every record "
    "sent back, checksums included. A round is cut into windows of 0.1 s: the gate reads the "
    "median window, the best one shows what the rings do when nothing else runs.",
    columns=(
        Column("round trips/s, median window", "round_trips_per_s_median"),
        Column("best window", "round_trips_per_s"),
        Column("batched, median window", "batched_round_trips_per_s_median"),
        Column("push and drain ns", "push_and_drain_ns"),
    ),
    run=run,
)
