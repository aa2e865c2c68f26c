"""Load in a pattern, and what must hold of it: when requests go out, and what became of them.

::

    constant   rate ────────────────────
    ramp       rate ───────────────► to, evenly over the whole time
    spike      rate ────┐ to ┌──────────       from spike_at_s on, for spike_for_s

Requests go out at their time whether earlier ones were answered or not, and a latency is counted
from that time, so a server that falls behind cannot hide it.

Invariants: arrivals are computed, never drawn; the same plan is the same instants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from .traces import TraceRow

Pattern: TypeAlias = Literal["constant", "ramp", "spike"]
PATTERNS: Final[tuple[Pattern, ...]] = ("constant", "ramp", "spike")
MOST_REQUESTS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How many requests per second, over how many seconds."""

    pattern: Pattern = "constant"
    rate: float = 10.0
    to: float = 10.0
    for_s: float = 10.0
    spike_at_s: float = 0.0
    spike_for_s: float = 1.0

    def expected(self, at_s: float) -> float:
        """How many requests have gone out by then; not whole."""
        at_s = min(max(at_s, 0.0), self.for_s)
        if self.pattern == "ramp":
            return self.rate * at_s + (self.to - self.rate) * at_s * at_s / (2 * self.for_s)
        count = self.rate * at_s
        if self.pattern == "spike":
            ends_at = min(self.spike_at_s + self.spike_for_s, self.for_s)
            inside = min(max(at_s - self.spike_at_s, 0.0), max(ends_at - self.spike_at_s, 0.0))
            count += (self.to - self.rate) * inside
        return count

    def arrivals(self) -> Iterator[float]:
        """Seconds from the beginning at which each request goes out, in order.

        Raises ``ValueError`` for a plan of more than ``MOST_REQUESTS``.
        """
        total = self.expected(self.for_s)
        if total > MOST_REQUESTS:
            raise ValueError(f"{total:.0f} requests are more than {MOST_REQUESTS}")
        at_s = 0.0
        for number in range(math.floor(total + 1e-9)):
            at_s = self._reached(number, at_s)
            yield at_s

    def _reached(self, count: int, from_s: float) -> float:
        """When so many have gone out: the pattern's growth, inverted by halving."""
        low, high = from_s, self.for_s
        while high - low > 1e-7:
            middle = (low + high) / 2
            if self.expected(middle) < count:
                low = middle
            else:
                high = middle
        return high if count else 0.0


@dataclass(frozen=True, slots=True)
class TracePlan:
    """Requests when those of a trace came, ``speed`` times as fast."""

    rows: Sequence[TraceRow]
    speed: float = 1.0

    @property
    def for_s(self) -> float:
        """Seconds until the last goes out."""
        return self.rows[-1].at_s / self.speed

    def arrivals(self) -> Iterator[float]:
        """Seconds from the beginning at which each request goes out, in order."""
        return (row.at_s / self.speed for row in self.rows)


@dataclass(slots=True)
class LoadOutcome:
    """What became of the requests of a plan."""

    sent: int = 0
    latencies_s: list[float] = field(default_factory=list)
    """Of those that were answered well."""
    failures: dict[str, int] = field(default_factory=dict)
    """By status, or by what went wrong."""
    took_s: float = 0.0

    def failed(self, why: str) -> None:
        """One more went wrong."""
        self.failures[why] = self.failures.get(why, 0) + 1

    @property
    def error_rate(self) -> float:
        """Share of requests that were not answered well."""
        return sum(self.failures.values()) / self.sent if self.sent else 0.0

    @property
    def throughput(self) -> float:
        """Good answers per second."""
        return len(self.latencies_s) / self.took_s if self.took_s else 0.0

    def latency_ms(self, quantile: float) -> float:
        """A quantile of the latencies (nearest rank); NaN when nothing was answered."""
        return nearest_rank(sorted(self.latencies_s), quantile) * 1e3


def nearest_rank(ordered: Sequence[float], quantile: float) -> float:
    """The value with that share of all at or below it; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(min(math.ceil(quantile * len(ordered)), len(ordered)), 1) - 1]


MEASURES: Final[dict[str, Callable[[LoadOutcome], float]]] = {
    "latency_mean": lambda seen: (
        sum(seen.latencies_s) / len(seen.latencies_s) * 1e3 if seen.latencies_s else math.nan
    ),
    "latency_p50": lambda seen: seen.latency_ms(0.50),
    "latency_p90": lambda seen: seen.latency_ms(0.90),
    "latency_p95": lambda seen: seen.latency_ms(0.95),
    "latency_p99": lambda seen: seen.latency_ms(0.99),
    "latency_max": lambda seen: max(seen.latencies_s, default=math.nan) * 1e3,
    "error_rate": lambda seen: seen.error_rate,
    "throughput": lambda seen: seen.throughput,
}
"""What an assertion may be about: latencies in milliseconds, a share, requests per second."""
_ASSERTION: Final = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([0-9.]+)\s*")
_HOLDS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True, slots=True)
class LoadAssertion:
    """``latency_p99<2000``: a measure, how it compares, and the bound."""

    measure: str
    compares: str
    bound: float

    @classmethod
    def read(cls, text: str) -> LoadAssertion:
        """Read one; raises ``ValueError``."""
        found = _ASSERTION.fullmatch(text)
        known = ", ".join(MEASURES)
        if found is None:
            raise ValueError(f"{text!r} is no assertion such as latency_p99<2000")
        if found[1] not in MEASURES:
            raise ValueError(f"{found[1]!r} is nothing that is measured; known: {known}")
        try:
            return cls(found[1], found[2], float(found[3]))
        except ValueError:
            raise ValueError(f"{found[3]!r} is no number") from None

    def holds(self, seen: LoadOutcome) -> bool:
        """Whether it holds; of nothing measured, nothing holds."""
        return _HOLDS[self.compares](MEASURES[self.measure](seen), self.bound)

    def __str__(self) -> str:
        return f"{self.measure} {self.compares} {self.bound:g}"


def table(seen: LoadOutcome, assertions: Sequence[LoadAssertion]) -> str:
    """Everything measured, what went wrong, and how each assertion fared."""
    rows = [("sent", f"{seen.sent}"), ("answered", f"{len(seen.latencies_s)}")]
    rows += [(f"failed: {why}", str(count)) for why, count in sorted(seen.failures.items())]
    for name, measure in MEASURES.items():
        unit = " ms" if name.startswith("latency") else "/s" if name == "throughput" else ""
        rows.append((name, f"{measure(seen):.4g}{unit}"))
    rows += [(str(one), "holds" if one.holds(seen) else "FAILS") for one in assertions]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
