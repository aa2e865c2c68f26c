"""Prefixes: what a prefix route's index costs a call."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario

TARGET = "index"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.prefixes`` once per round on the gateway's core."""
    return bench.repeat(TARGET, "benchmarks.prefixes", bench.cores.for_gateway())


SCENARIO = Scenario(
    title="Prefix index",
    method="A prompt of 16 KiB is hashed in blocks, and prompts of 64 blocks of which a part is "
    "known are looked up among 100,000 recorded ones.",
    columns=(
        Column("CPU µs/KiB hashed", "hash_us_per_kib"),
        Column("CPU µs/lookup", "lookup_us"),
        Column("found as deep as recorded", "recall"),
    ),
    run=run,
)
