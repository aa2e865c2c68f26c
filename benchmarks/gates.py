"""The figures that must hold, and whether they do.

Every gate reads one figure from the reports.  A figure measured under less than the gate asks
for (fewer streams, fewer requests), or while other processes took the gateway's core, is shown and
not judged; a figure that came with failed requests is not met, whatever it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .report import Report

TIMES = "\u00d7"


class Verdict(StrEnum):
    """What a gate says."""

    MET = "met"
    STRETCH = "met, stretch too"
    MISSED = "not met"
    BUSY = "machine was busy"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Gate:
    """One figure with its limit; ``highest`` says on which side of the limit is good.

    ``targets`` are those whose failed requests spoil the figure; ``enough`` names a field and
    the value it must reach for the figure to count.
    """

    figure: str
    scenario: str
    value: Callable[[Report], float | None]
    limit: float
    unit: str
    targets: tuple[str, ...]
    stretch: float | None = None
    highest: bool = True
    enough: tuple[str, float] | None = None

    def measured(self, reports: Mapping[str, Report]) -> float | None:
        """Answer the figure, ``None`` when it was not measured."""
        report = reports.get(self.scenario)
        return self.value(report) if report else None

    def verdict(self, reports: Mapping[str, Report]) -> Verdict:
        """Judge the figure."""
        value = self.measured(reports)
        if value is None:
            return Verdict.UNKNOWN
        report = reports[self.scenario]
        if self.enough is not None:
            field, least = self.enough
            if any((report.median(name, field) or 0) < least for name in self.targets):
                return Verdict.UNKNOWN
        if report.failed(self.targets):
            return Verdict.MISSED
        if report.busy(self.targets):
            return Verdict.BUSY
        if not self._holds(value, self.limit):
            return Verdict.MISSED
        if self.stretch is not None and self._holds(value, self.stretch):
            return Verdict.STRETCH
        return Verdict.MET

    def text(self) -> str:
        """Render the limit."""
        return f"{'≤' if self.highest else '≥'} {self.limit:,g} {self.unit}".strip()

    def _holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.highest else value >= limit


def _median(target: str, field: str) -> Callable[[Report], float | None]:
    return lambda report: report.median(target, field)


def _difference(target: str, base: str, field: str) -> Callable[[Report], float | None]:
    return lambda report: report.difference(target, base, field)


def _ratio(target: str, base: str, field: str) -> Callable[[Report], float | None]:
    return lambda report: report.ratio(target, base, field)


PLAIN, GOVERNED, ECHO, MESSAGES = "tpo", "tpo-governed", "tpo-echo", "tpo-messages"
BOTH = (PLAIN, GOVERNED)
SIMULATOR, PACED = "tpo-simulator", "tpo-simulator-paced"
BOOT, ARRIVALS = "tpo-simulator-boot", "tpo-simulator-arrivals"
TWO = "tpo-simulator-two"
MLX, MLX_LM = "mlx_engine", "mlx_lm-server"

GATES = (
    Gate(
        "CPU per request, unary, plain", "relay", _median(PLAIN, "cpu_us"), 28, "µs", (PLAIN,), 22,
    ),
    Gate(
        "plain against the vLLM router, same run", "relay",
        _ratio(PLAIN, "vllm-router", "cpu_us"), 1, TIMES, (PLAIN,),
    ),
    Gate(
        "CPU per request, unary, governed", "relay", _median(GOVERNED, "cpu_us"), 36, "µs",
        (GOVERNED,), 28,
    ),
    Gate(
        "governed against the vLLM router, same run", "relay",
        _ratio(GOVERNED, "vllm-router", "cpu_us"), 1, TIMES, (GOVERNED,),
    ),
    Gate(
        "governed minus plain, same run", "relay", _difference(GOVERNED, PLAIN, "cpu_us"), 10, "µs",
        BOTH,
    ),
    Gate(
        "upstream = records = client successes, plain", "relay", _median(PLAIN, "miscounted"), 0,
        "calls off", (PLAIN,),
    ),
    Gate(
        "upstream = records = client successes, governed", "relay",
        _median(GOVERNED, "miscounted"), 0,
        "calls off", (GOVERNED,),
    ),
    Gate(
        "CPU per 64-event stream, plain", "stream", _median(PLAIN, "cpu_us"), 400, "µs", (PLAIN,),
        350,
    ),
    Gate(
        "CPU per 64-event stream, governed", "stream", _median(GOVERNED, "cpu_us"), 400, "µs",
        (GOVERNED,), 350,
    ),
    Gate(
        "translated 64-event stream against the same passed through", "translation",
        _ratio(MESSAGES, PLAIN, "cpu_us"), 2.5, TIMES, (MESSAGES, PLAIN),
    ),
    Gate(
        "added p99 at one connection, plain", "latency", _difference(PLAIN, "direct", "p99_ms"),
        0.5, "ms", (PLAIN, "direct"), 0.2,
    ),
    Gate(
        "added p99 at one connection, governed", "latency",
        _difference(GOVERNED, "direct", "p99_ms"), 0.5, "ms", (GOVERNED, "direct"),
        0.2,
    ),
    Gate("cross-shard hop", "hop", _median(ECHO, "hop_cpu_us"), 20, "µs", (ECHO,), 12),
    Gate(
        "ring round trips, 64 in flight", "ring",
        _median("ring", "round_trips_per_s_median"), 300_000, "/s", ("ring",),
        600_000, highest=False,
    ),
    Gate(
        "in-process pipeline, echo, governed", "pipeline",
        _median("spawn_pipeline-governed", "rps"), 40_000, "/s",
        ("spawn_pipeline-governed",), 100_000, highest=False,
    ),
    Gate("idle worker, PSS", "memory", _median(PLAIN, "idle_worker_mib"), 60, "MiB", (PLAIN,)),
    Gate(
        "growth with 10,000 open streams", "memory", _median(PLAIN, "streams_growth_mib"), 300,
        "MiB", (PLAIN,), enough=("streams", 10_000),
    ),
    Gate(
        "growth of a worker over 1,000,000 requests", "memory", _median(PLAIN, "growth_worker_mib"),
        1, "MiB", (PLAIN,), 0, enough=("growth_requests", 1_000_000),
    ),
    Gate(
        "simulated provider, whole answers", "simulator", _median(SIMULATOR, "rps"), 15_000, "/s",
        (SIMULATOR,), highest=False,
    ),
    Gate(
        "simulated provider, streamed tokens", "simulator", _median(SIMULATOR, "tokens_per_s"),
        150_000, "/s", (SIMULATOR,), highest=False,
    ),
    Gate(
        "lag p99 of 5,000 simulated streams, 100 ms a token", "simulator",
        _median(PACED, "lag_p99_ms"), 10, "ms", (PACED,), enough=("streams", 5_000),
    ),
    Gate(
        "memory of a simulated stream", "simulator", _median(PACED, "kib_each"), 10, "KiB",
        (PACED,), enough=("streams", 5_000),
    ),
    Gate(
        "two simulating workers, whole answers", "simulator", _median(TWO, "two_rps"), 10_000, "/s",
        (TWO,), highest=False,
    ),
    Gate(
        "p99 of two simulating workers at that", "simulator", _median(TWO, "two_p99_ms"), 5, "ms",
        (TWO,), enough=("two_rps", 10_000),
    ),
    Gate(
        "simulator with one worker ready after, on two cores", "simulator", _median(BOOT, "boot_s"),
        1, "s", (BOOT,), enough=("starts", 5),
    ),
    Gate(
        "arrival minus schedule of simulated tokens, p99 of 1,000 streams",
        "simulator",
        _median(ARRIVALS, "arrival_p99_ms"), 2, "ms", (ARRIVALS,),
        enough=("arrival_streams", 1_000),
    ),
    Gate(
        "answers at twice the capacity", "overload", _median("2x", "share"), 0.9, "of it", ("2x",),
        0.95, highest=False,
    ),
    Gate(
        "answers at five times the capacity", "overload", _median("5x", "share"), 0.8, "of it",
        ("5x",), highest=False,
    ),
    Gate(
        "p99 of refusals at twice the capacity", "overload", _median("2x", "refused_p99_ms"), 20,
        "ms", ("2x",),
    ),
    Gate(
        "retry-after at twice the capacity, against true waits", "overload",
        _median("2x", "told_off_by"), 2, f"{TIMES} off", ("2x",),
    ),
    Gate(
        "p99 of answers at twice the capacity, against half of it", "overload",
        _median("2x", "against_half"), 3, TIMES, ("2x", "0.5x"),
    ),
    Gate(
        "until all is as before, after five times the capacity", "overload",
        _median("after", "recovery_s"), 5, "s", (),
    ),
    Gate(
        "a tenant's answers beside one that floods", "overload",
        _median("tenants", "share_of_fair"), 0.9, "of its fair share", ("tenants",), highest=False,
    ),
    Gate(
        "longest wait of a low call, against the promise", "overload",
        _median("low", "wait_of_bound"), 1, TIMES, ("low",),
    ),
    Gate(
        "requests to a failing backend per call", "overload",
        _median("outage", "amplification"), 1.2, "", (), 1.1,
    ),
    Gate(
        "hashing a prompt for the prefix index, per KiB", "prefixes",
        _median("index", "hash_us_per_kib"), 2, "µs", ("index",),
    ),
    Gate(
        "a lookup among 100,000 blocks of the prefix index", "prefixes",
        _median("index", "lookup_us"), 5, "µs", ("index",),
    ),
    Gate(
        "an answer from the cache, socket to socket", "hits",
        _median("tpo", "cpu_us"), 25, "µs CPU", ("tpo",),
    ),
    Gate(
        "a lookup in the cache that finds nothing", "hits",
        _median("lookup", "miss_us"), 3, "µs CPU", ("lookup",),
    ),
    *(
        Gate(
            f"MLX engine, tokens of {clients} at once against mlx_lm's server, same run", "mlx",
            _ratio(MLX, MLX_LM, f"tokens_per_s_{clients}"), 1, TIMES, (MLX,), highest=False,
        )
        for clients in (1, 8, 32)
    ),
    *(
        Gate(
            f"MLX engine, first token of {clients} at once against mlx_lm's server, same run",
            "mlx", _ratio(MLX, MLX_LM, f"first_ms_{clients}"), 1, TIMES, (MLX,),
        )
        for clients in (1, 8, 32)
    ),
)  # fmt: skip
