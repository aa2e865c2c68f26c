"""Single stages in process: what each adds to a call."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario
from benchmarks.stages import CASES

TARGET = "CPU µs a call"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.stages`` once per round on the gateway's core."""
    return bench.repeat(TARGET, "benchmarks.stages", bench.cores.for_gateway())


SCENARIO = Scenario(
    title="Stages in process",
    method="One stage in front of a core that answers at once, one call after the other, on shared "
    "memory of one seat; the same calls without the stage are taken off.",
    columns=tuple(Column(case.title, f"{name}_us") for name, case in CASES.items()),
    run=run,
)
