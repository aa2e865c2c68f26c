"""Health, readiness and liveness, read from shared memory alone; no worker is ever asked.

Both ports answer from these pure functions, so they cannot disagree.

* live: this process answers.  Depends on nothing.
* ready: the host runs and at least one shard serves.  ``degraded`` names what is missing.
* health: the whole picture; 503 while the host drains, no shard serves or every breaker is open.

The structures are described by protocols, because this room does not know ``shm``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from .rooms import DEPTH_GAUGE, rooms

HOST_STATES = ("starting", "running", "draining", "stopping")
SEAT_STATES = ("empty", "booting", "parked", "ready", "draining", "stopped")
"""Names of the numbers in ``shm.plane``."""
RUNNING = 1
READY = 3
BREAKER_STATES = ("closed", "half_open", "open")
OPEN = 2
BREAKER_GAUGE = "orchestrator_circuit_breaker_state"
STATE_GAUGE = "tpo_backend_state"
ENGINE_GAUGE = "tpo_engine_state"
_ENGINE_WELL = (0, 3)
"""Unknown and ready; see ``shm.engine_rows``."""
WELL = ("healthy", "degraded")
"""A host that takes calls."""
_STANDINGS = ("unknown", "starting", "ready", "draining", "down")
_AWAY = (1, 4)
"""Starting and down; see ``shm.standing``."""

Body: TypeAlias = dict[str, Any]


class SeatView(Protocol):
    """A seat's words."""

    @property
    def epoch(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def state(self) -> int: ...
    @property
    def config_ack(self) -> int: ...
    @property
    def open_calls(self) -> int: ...
    @property
    def loop_lag_us(self) -> int: ...


class PlaneView(Protocol):
    """The host's control words."""

    @property
    def workers(self) -> int: ...
    @property
    def seats(self) -> int: ...
    @property
    def host_state(self) -> int: ...
    @property
    def started_at_wall_ms(self) -> int: ...
    @property
    def restarts_total(self) -> int: ...
    @property
    def config_epoch(self) -> int: ...
    def slot_seat(self, slot: int, /) -> int: ...
    def seat(self, seat: int, /) -> SeatView: ...


class SampleView(Protocol):
    """One series."""

    @property
    def labels(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def value(self) -> float: ...
    @property
    def buckets(self) -> tuple[tuple[float, int], ...]: ...
    @property
    def sum(self) -> float: ...


class FamilyView(Protocol):
    """All series of one name."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def samples(self) -> Sequence[SampleView]: ...


class TallyView(Protocol):
    """What the tries of one backend came to, on the whole host."""

    @property
    def requests(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def avg_latency_ms(self) -> float | None: ...
    @property
    def failing(self) -> bool: ...


class ArenaView(Protocol):
    """The host's metrics."""

    def collect(self) -> Iterable[FamilyView]: ...


def live() -> Body:
    """The body of ``/live``; always with status 200."""
    return {"status": "alive", "alive": True}


def ready(plane: PlaneView, metrics: ArenaView | None = None) -> tuple[int, Body]:
    """Status and body of ``/ready``."""
    levels = _Levels(metrics)
    body: Body = {"status": "ready", "ready": True, "degraded": _degraded(plane, levels)}
    reason = _not_ready(plane)
    if reason is None:
        return 200, body
    return 503, body | {"status": "not_ready", "ready": False, "reason": reason}


def health(
    plane: PlaneView,
    metrics: ArenaView,
    places: Mapping[str, int],
    models: Iterable[str] = (),
    tries: Mapping[str, TallyView] | None = None,
) -> Body:
    """The body of ``/health``; ``health_status`` gives its status.

    ``places`` is the configured capacity of the waiting room by stage, as ``rooms`` wants it, and
    ``models`` are those that the configuration names; ``tries`` are those of its backends.
    """
    levels = _Levels(metrics)
    draining = plane.host_state > RUNNING
    degraded = _degraded(plane, levels)
    breaker = _breaker(levels)
    used = sum(plane.seat(n).open_calls for n in range(plane.seats))
    capacity = int(levels.one("tpo_open_calls_limit"))
    found = rooms(levels.samples(DEPTH_GAUGE), places, plane.workers)
    waiting = sum(room.waiting for room in found)
    most = sum(room.capacity for room in found)
    rss = sum(_rss(plane.seat(n).pid) for n in range(plane.seats))
    status = _status(plane, breaker, degraded)
    return {
        "status": status,
        **nodes(status),
        "loaded_models": sorted({*models}),
        "cluster_load": round(used / capacity, 4) if capacity else 0.0,
        "load_balancer_stats": _balance(levels, tries or {}),
        "version": package_version(),
        "uptime_secs": int(max(0.0, time.time() - plane.started_at_wall_ms / 1e3)),
        "shutting_down": draining,
        "pipeline": {
            "inbound_queue": {"used": waiting, "capacity": most, "depth_pct": _pct(waiting, most)},
            "circuit_breaker": {"state": breaker["state"], "is_open": breaker["state"] == "open"},
            "dead_letter_queue_depth": int(levels.one("tpo_dead_letters")),
        },
        "worker_pool": {
            "pending_requests": used,
            "tracker_used": used,
            "tracker_capacity": capacity,
            "tracker_depth_pct": _pct(used, capacity),
        },
        "memory": {"rss_bytes": rss, "rss_mb": round(rss / (1 << 20), 1)},
        "circuit_breaker": breaker,
        "host": {
            "state": _name(HOST_STATES, plane.host_state),
            "config_epoch": plane.config_epoch,
            "restarts": plane.restarts_total,
            "shards": [_shard(plane, slot) for slot in range(plane.workers)],
        },
        "degraded": degraded,
    }


def nodes(status: str) -> Body:
    """How many hosts there are and how many are well: this one."""
    return {"total_nodes": 1, "healthy_nodes": int(status in WELL)}


def health_status(body: Body) -> int:
    """The HTTP status of a health body."""
    return 200 if body["status"] in WELL else 503


def package_version() -> str:
    """Version of the installed package; whoever asks first waits for an import."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tpo-mp")
    except PackageNotFoundError:
        return "0"


class _Levels:
    """Sums of the gauges this file reads."""

    def __init__(self, metrics: ArenaView | None) -> None:
        self._families = {} if metrics is None else {f.name: f for f in metrics.collect()}

    def one(self, name: str) -> float:
        return sum(sample.value for sample in self.samples(name))

    def samples(self, name: str) -> Sequence[SampleView]:
        family = self._families.get(name)
        return () if family is None else family.samples


def _not_ready(plane: PlaneView) -> str | None:
    if plane.host_state > RUNNING:
        return "shutting_down"
    if plane.host_state < RUNNING:
        return "starting"
    if not any(_serves(plane, slot) for slot in range(plane.workers)):
        return "no_shard"
    return None


def _serves(plane: PlaneView, slot: int) -> bool:
    seat = plane.slot_seat(slot)
    return seat < plane.seats and plane.seat(seat).state == READY


def _degraded(plane: PlaneView, levels: _Levels) -> list[str]:
    missing = [f"slot-{slot}" for slot in range(plane.workers) if not _serves(plane, slot)]
    if plane.seat(plane.seats - 1).state != READY:
        missing.append("control")
    if levels.one("tpo_redis_down"):
        missing.append("redis")
    broken = (s for s in levels.samples("tpo_store_broken") if s.value)
    missing += ["store-" + dict(sample.labels).get("part", "") for sample in broken]
    idle = (s for s in levels.samples(ENGINE_GAUGE) if s.value not in _ENGINE_WELL)
    missing += ["engine-" + dict(sample.labels).get("engine", "") for sample in idle]
    away = (s for s in levels.samples(STATE_GAUGE) if s.value in _AWAY)
    missing += ["backend-" + dict(sample.labels).get("backend", "") for sample in away]
    shut = (s for s in levels.samples(BREAKER_GAUGE) if s.value >= OPEN)
    return missing + ["breaker-" + dict(sample.labels).get("worker", "") for sample in shut]


def _status(plane: PlaneView, breaker: Body, degraded: list[str]) -> str:
    if plane.host_state > RUNNING:
        return "shutting_down"
    if _not_ready(plane) is not None or breaker["state"] == "open":
        return "unhealthy"
    return "degraded" if degraded else "healthy"


def _breaker(levels: _Levels) -> Body:
    """One breaker for the whole host: open only when every backend's is."""
    states = [
        min(int(sample.value), OPEN)
        for sample in levels.samples(BREAKER_GAUGE)
        if ":" not in dict(sample.labels).get("worker", "")  # a model's is a part of its backend's
    ]
    waits = [s.value for s in levels.samples("orchestrator_circuit_breaker_next_probe_seconds")]
    probes = [s.value for s in levels.samples("orchestrator_circuit_breaker_probe_failures")]
    return {
        "state": BREAKER_STATES[min(states, default=0)],
        "failure_count": int(levels.one("orchestrator_circuit_breaker_failures")),
        "next_probe_in_secs": round(min((w for w in waits if w), default=0.0), 3),
        "probe_failures": int(max(probes, default=0)),
    }


def _balance(levels: _Levels, tries: Mapping[str, TallyView]) -> Body:
    """What the backends were given, and how they stand; nobody asks an unknown one.

    One is healthy when it is not away and its breaker not open; without a breaker the last try
    counts.
    """
    breakers = {
        dict(s.labels).get("worker", ""): int(s.value) for s in levels.samples(BREAKER_GAUGE)
    }
    seen = {dict(s.labels).get("backend", ""): int(s.value) for s in levels.samples(STATE_GAUGE)}
    found: Body = {}
    for name in sorted({*seen, *tries}):
        state, tally = seen.get(name, 0), tries.get(name)
        failing = tally is not None and tally.failing
        broken = breakers[name] >= OPEN if name in breakers else failing
        well = state not in _AWAY and not broken
        found[name] = {"state": _name(_STANDINGS, state), "is_healthy": well}
        if tally is not None:
            found[name] |= {
                "requests": tally.requests,
                "failures": tally.failures,
                "avg_latency_ms": tally.avg_latency_ms,
            }
    return {
        "total_requests": sum(tally.requests for tally in tries.values()),
        "unhealthy_count": sum(not one["is_healthy"] for one in found.values()),
        "by_endpoint": found,
    }


def _shard(plane: PlaneView, slot: int) -> Body:
    number = plane.slot_seat(slot)
    if number >= plane.seats:
        return {"slot": slot, "state": "empty"}
    seat = plane.seat(number)
    return {
        "slot": slot,
        "seat": number,
        "pid": seat.pid,
        "state": _name(SEAT_STATES, seat.state),
        "open_calls": seat.open_calls,
        "config_epoch": seat.config_ack,
        "loop_lag_us": seat.loop_lag_us,
    }


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else "unknown"


def _pct(used: int, capacity: int) -> float:
    return round(100.0 * used / capacity, 1) if capacity else 0.0


def _rss(pid: int) -> int:
    if not pid:
        return 0
    import psutil  # not while a process starts: nobody asks for this before it is ready

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return 0
