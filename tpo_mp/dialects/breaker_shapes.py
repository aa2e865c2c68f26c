"""What the pages about circuit breakers say; see ``shapes``."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class BreakerFault(Struct):
    """One circuit of a breaker: what counts in it is one kind of fault."""

    status: Literal["closed", "half_open", "open"]
    failures: int
    probe_failures: int
    next_probe_in_secs: float
    probed_now: bool


class BreakerRecord(Struct):
    """A breaker: the worst of its circuits, and its tries since the host started."""

    name: str
    status: Literal["closed", "half_open", "open"]
    failures: int
    probe_failures: int
    next_probe_in_secs: float
    time_in_current_state: float | None
    failed_total: int
    successes: int
    success_rate: float | None
    paused_for_secs: float
    faults: dict[str, BreakerFault]


class BreakerList(Struct):
    """Every breaker of the host."""

    circuit_breakers: list[BreakerRecord]
    count: int


class BreakersReset(Struct):
    """What was reset."""

    reset: list[str]
    count: int
