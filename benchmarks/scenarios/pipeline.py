"""The pipeline in process, without HTTP: calls per second of one core."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario

TARGET, GOVERNED = "spawn_pipeline", "spawn_pipeline-governed"
MODULE = "benchmarks.inprocess"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.inprocess`` once per round on the gateway's core, without rules and with."""
    cores = bench.cores.for_gateway()
    found = bench.repeat(TARGET, MODULE, cores)
    return found | bench.repeat(GOVERNED, MODULE, cores, "--governed")


SCENARIO = Scenario(
    title="Pipeline in process",
    method="`tpo_mp.spawn_pipeline` with the echo backend, 64 callers in one event loop on one "
    "core; governed: with limits of four levels, budgets, cache lookup and deduplication of every "
    "call.",
    columns=(
        Column("calls/s", "rps"),
        Column("CPU µs/call", "cpu_us"),
        Column("p50 ms", "p50_ms"),
        Column("p99 ms", "p99_ms"),
    ),
    run=run,
)
