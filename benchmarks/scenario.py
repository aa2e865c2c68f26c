"""What a scenario is: a measurement with a method, columns and, for some, a picture."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .bench import Bench
from .report import Report, Series

NAMES = ("relay", "stream", "translation", "latency", "hop", "ring", "pipeline", "stages", "echo",
         "memory", "saturation", "simulator", "retrieval", "prefixes", "overload", "savings",
         "hits", "batching", "affinity", "engine_affinity", "tier", "mlx",
         "mlx_transport", "vllm")  # fmt: skip
"""All scenarios in the order of the report."""

OURS = ("tpo", "tpo-governed")
YARDSTICKS = ("direct", "relay", "nginx")
PEERS = ("vllm-router", "sglang-router", "smg", "litellm")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a scenario's table.

    With ``over`` the cell is the ratio to that target in the same rounds, with ``minus`` the
    difference from it; otherwise the median of ``field`` and its spread.
    """

    header: str
    field: str
    over: str = ""
    minus: str = ""

    def value(self, report: Report, target: str) -> float | None:
        """Answer the number of one target."""
        if target in (self.over, self.minus):
            return None
        if self.over:
            return report.ratio(target, self.over, self.field)
        if self.minus:
            return report.difference(target, self.minus, self.field)
        return report.median(target, self.field)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One measurement: ``method`` is printed under its table, ``plot`` is drawn beside it.

    Where targets are points of a curve, ``curves`` are the fields drawn over ``x``; ``beside``
    names, by field, one that is drawn in the same chart.
    """

    title: str
    method: str
    columns: tuple[Column, ...]
    run: Callable[[Bench], dict[str, Series]]
    plot: Column | None = None
    x: Column | None = None
    curves: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)


RELAYED = (
    Column("CPU µs", "cpu_us"),
    Column("CPU / bare relay", "cpu_us", over="relay"),
    Column("requests/s", "rps"),
    Column("p50 ms", "p50_ms"),
    Column("p99 ms", "p99_ms"),
    Column("PSS MiB", "pss_mib"),
    Column("failed", "failed"),
)
"""The columns of every comparison of gateways."""


def find(name: str) -> Scenario:
    """Import one scenario."""
    scenario: Scenario = importlib.import_module(f"benchmarks.scenarios.{name}").SCENARIO
    return scenario


def everyone(bench: Bench) -> list[str]:
    """Name the targets of a comparison; Python peers only when their directory was given."""
    return [*YARDSTICKS, *(PEERS if bench.options.peers else ()), *OURS]
