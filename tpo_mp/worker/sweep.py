"""Garbage collection when nobody waits for it.

What start-up made is frozen out of collection; the young generations run as usual, because calls
make no reference cycles and they find nothing; the full collection runs only while the shard is
idle, or when the heap grew past a cap.

What any collection frees is counted: it grows with the calls when they leave cycles after all.
"""

from __future__ import annotations

import gc
from time import perf_counter

from tpo_mp.ports import Metrics

PAUSE_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1)
GROWTH_CAP = 500_000
IDLE_EVERY_S = 30.0
COUNT_EVERY_S = 1.0


class IdleSweep:
    """Decides when the full collection runs."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._pause = metrics.histogram(
            "tpo_gc_pause_seconds", "Full garbage collections.", PAUSE_S
        )
        self._freed = metrics.counter(
            "tpo_gc_collected_total", "Objects in cycles, which only the collector could free."
        )
        self._last = self._counted_at = now
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 1_000_000)
        gc.enable()
        self._known = _collected()

    def tick(self, now: float, *, idle: bool) -> None:
        """Collect if it is time."""
        grown = gc.get_count()[2] * 100_000 > GROWTH_CAP
        if grown or (idle and now - self._last > IDLE_EVERY_S):
            started = perf_counter()
            gc.collect()
            self._pause.observe(perf_counter() - started)
            self._last = now
        if now - self._counted_at >= COUNT_EVERY_S:
            self._counted_at = now
            before, self._known = self._known, _collected()
            self._freed.inc(self._known - before)


def _collected() -> int:
    """Objects that all collections of this process have freed so far."""
    return sum(generation["collected"] for generation in gc.get_stats())
