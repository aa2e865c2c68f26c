"""Prometheus exposition of the host, text format 0.0.4, for both ports.

Series of the arena appear under their own names; what the control words know (states, restarts,
processes) is derived here at scrape time.  Nothing is asked of a worker, so a scrape works while
one dies; a series that is not valid exposition is left out rather than spoiling the page.

Invariant: each series appears once; counters end in ``_total``.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator

import psutil
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from .health import (
    READY,
    SEAT_STATES,
    ArenaView,
    FamilyView,
    PlaneView,
    SampleView,
    package_version,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")
_LABEL = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]*$")


def render(arena: ArenaView, plane: PlaneView) -> bytes:
    """The whole page; takes a few milliseconds with some hundred series."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(HostCollector(arena, plane))
    return generate_latest(registry)


class HostCollector(Collector):
    """A ``prometheus_client`` collector over shared memory."""

    def __init__(self, arena: ArenaView, plane: PlaneView) -> None:
        self._arena = arena
        self._plane = plane

    def collect(self) -> Iterator[Metric]:
        """The derived series, then the arena's."""
        seen = set()
        for metric in derived(self._plane):
            seen.add(metric.name)
            yield metric
        for family in self._arena.collect():
            base = _base(family)
            if base is None or base in seen:
                continue
            seen.add(base)
            yield _metric(family, base)


def derived(plane: PlaneView) -> Iterator[Metric]:
    """Series that the control words and the process table know."""
    uptime = max(0.0, time.time() - plane.started_at_wall_ms / 1e3)
    yield _gauge("tpo_build_info", "Version of the running package.", 1, version=package_version())
    yield _gauge("tpo_uptime_seconds", "Seconds since the supervisor started.", uptime)
    yield _gauge("tpo_host_state", "0 starting, 1 running, 2 draining, 3 stopping.",
                 plane.host_state)  # fmt: skip
    yield _gauge("tpo_config_epoch", "Published config epoch.", plane.config_epoch)
    yield _counter("tpo_worker_restarts", "Processes replaced after they died or hung.",
                   plane.restarts_total)  # fmt: skip
    yield from _seats(plane)


def _seats(plane: PlaneView) -> Iterator[Metric]:
    state = Metric("tpo_seat_state", "1 for the state a seat is in.", "gauge")
    calls = Metric("tpo_seat_open_calls", "Calls a seat holds open.", "gauge")
    lag = Metric("tpo_seat_loop_lag_seconds", "Latest event loop lag of a seat.", "gauge")
    rss = Metric("tpo_process_resident_memory_bytes", "Resident memory of a seat.", "gauge")
    cpu = Metric("tpo_process_cpu_seconds", "CPU seconds of a seat's process.", "counter")
    up = Metric("tpo_slot_up", "1 while a ready shard serves the slot.", "gauge")
    for number in range(plane.seats):
        seat = plane.seat(number)
        if not seat.epoch:
            continue
        labels = {"seat": str(number)}
        name = SEAT_STATES[seat.state] if seat.state < len(SEAT_STATES) else "unknown"
        state.add_sample(state.name, labels | {"state": name}, 1)
        calls.add_sample(calls.name, labels, seat.open_calls)
        lag.add_sample(lag.name, labels, seat.loop_lag_us / 1e6)
        used = _process(seat.pid)
        if used is not None:
            rss.add_sample(rss.name, labels, used[0])
            cpu.add_sample("tpo_process_cpu_seconds_total", labels, used[1])
    for slot in range(plane.workers):
        seat_of = plane.slot_seat(slot)
        serves = seat_of < plane.seats and plane.seat(seat_of).state == READY
        up.add_sample(up.name, {"slot": str(slot)}, int(serves))
    yield from (state, calls, lag, rss, cpu, up)


def _process(pid: int) -> tuple[int, float] | None:
    if not pid:
        return None
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return process.memory_info().rss, times.user + times.system
    except (psutil.Error, OSError):
        return None


def _base(family: FamilyView) -> str | None:
    """The metric's name without a counter's suffix, or ``None`` when it is no valid name."""
    name = family.name
    if not _NAME.match(name) or family.kind not in ("counter", "gauge", "histogram"):
        return None
    return name.removesuffix("_total") if family.kind == "counter" else name


def _metric(family: FamilyView, base: str) -> Metric:
    metric = Metric(base, family.help or base, family.kind)
    for sample in _valid(family.samples):
        labels = dict(sample.labels)
        if family.kind == "counter":
            metric.add_sample(base + "_total", labels, sample.value)
        elif family.kind == "gauge":
            metric.add_sample(base, labels, sample.value)
        else:
            for bound, count in sample.buckets:
                metric.add_sample(base + "_bucket", labels | {"le": _bound(bound)}, count)
            metric.add_sample(base + "_sum", labels, sample.sum)
            metric.add_sample(base + "_count", labels, sample.value)
    return metric


def _valid(samples: Iterable[SampleView]) -> Iterator[SampleView]:
    return (
        s for s in samples if all(_LABEL.match(k) and not k.startswith("__") for k, _ in s.labels)
    )


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else repr(float(bound))


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    metric = Metric(name, text, "gauge")
    metric.add_sample(name, labels, value)
    return metric


def _counter(base: str, text: str, value: float) -> Metric:
    metric = Metric(base, text, "counter")
    metric.add_sample(base + "_total", {}, value)
    return metric
