"""Retrieval: how often the right document is found, and what a lookup takes."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario

TARGET = "rag"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.retrieval`` once per round on the gateway's core."""
    return bench.repeat(TARGET, "benchmarks.retrieval", bench.cores.for_gateway())


SCENARIO = Scenario(
    title="Retrieval",
    method="The questions of `benchmarks/corpus/retrieval.json`, one for each of its documents, "
    "looked up in the store's index among the documents of twenty other tenants.",
    columns=(
        Column("recall at 1", "recall_at_1"),
        Column("recall at 4", "recall_at_4"),
        Column("mean reciprocal rank", "mean_reciprocal_rank"),
        Column("CPU µs/lookup", "lookup_us"),
    ),
    run=run,
)
