"""Single stages in process: what each adds to a call."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario
from benchmarks.stages import CASES

MODULE = "benchmarks.stages"


def run(bench: Bench) -> dict[str, Series]:
    """Run ``benchmarks.stages`` once per round on the gateway's core; a line for each case."""
    series: dict[str, Series] = {}
    for said in bench.repeat("stages", MODULE, bench.cores.for_gateway()).values():
        for name, case in CASES.items():
            rows = [{"cpu_us": row[f"{name}_us"], "round": row["round"]} for row in said.rows]
            series[case.title] = Series(rows=rows, skipped=said.skipped)
    return series


SCENARIO = Scenario(
    title="Stages in process",
    method="One stage in front of a core that answers at once, one call after the other, on shared "
    "memory of one seat; the same calls without the stage are taken off.",
    columns=(Column("CPU µs a call", "cpu_us"),),
    plot=Column("CPU µs a call", "cpu_us"),
    run=run,
)
