"""What our own load client is told, and what it answers: structs that cross a pipe as JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .payload import PATH

Session = Literal["none", "own", "foreign"]


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of load; it ends at ``secs`` or after ``count`` requests, whichever is first."""

    secs: float
    count: int = 0
    session: Session = "none"
    label: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send where; ``pids`` are the processes whose CPU time is read."""

    url: str
    tag: str
    conns: int
    phases: list[Phase]
    pids: list[int] = msgspec.field(default_factory=list)
    stream: bool = False
    extra: dict[str, Any] = msgspec.field(default_factory=dict)
    path: str = PATH
    distinct: int = 0
    timeout_s: float = 30.0


class Outcome(msgspec.Struct, kw_only=True):
    """What one stretch of load saw; ``cpu_s`` belongs to the processes that were watched."""

    requests: int
    secs: float
    rps: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    non2xx: int
    errors: int
    cpu_s: float
    label: str = ""

    @property
    def cpu_us(self) -> float:
        """Answer the microseconds of CPU per request."""
        return self.cpu_s / max(self.requests, 1) * 1e6

    def row(self) -> dict[str, float]:
        """Render for a report."""
        return {
            "requests": self.requests,
            "rps": round(self.rps, 1),
            "cpu_us": round(self.cpu_us, 2),
            "p50_ms": round(self.p50_ms, 4),
            "p90_ms": round(self.p90_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "max_ms": round(self.max_ms, 3),
            "failed": self.non2xx + self.errors,
        }
