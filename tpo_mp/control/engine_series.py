"""The series of the engines that the host starts itself, from what the supervisor says.

Invariant: a restart is counted once, however often control itself is replaced: the count goes on
from what the arena has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tpo_mp.observe.health import ENGINE_GAUGE, ArenaView
from tpo_mp.ports import Ledger, Metrics, Watch
from tpo_mp.shm.engine_rows import ENGINE_STATES, engine_row, read_engine

RESTARTS: Final = "tpo_engine_restarts_total"
_STATES: Final = ", ".join(f"{place} {name}" for place, name in enumerate(ENGINE_STATES))


class EngineSeries:
    """Mirrors the rows of the configured engines."""

    def __init__(self, ledger: Ledger, metrics: Metrics, arena: ArenaView) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._arena = arena
        self._names: tuple[str, ...] = ()
        self._watch: Watch | None = None
        self._last: dict[str, int] = {}

    def configure(self, names: Sequence[str]) -> None:
        """Show these from now on."""
        if tuple(names) == self._names:
            return
        for gone in set(self._names).difference(names):
            self._gauge(gone, 0)
            self._last.pop(gone, None)
        self._names = tuple(names)
        self._watch = self._ledger.watch(*map(engine_row, names)) if names else None

    def show(self) -> None:
        """Bring the series to what the supervisor said last."""
        if self._watch is None:
            return
        for name, cells in zip(self._names, self._watch.peek(), strict=True):
            state, restarts = read_engine(cells)
            self._gauge(name, state)
            self._count(name, restarts)

    def _gauge(self, name: str, state: int) -> None:
        text = f"How an engine of this host is: {_STATES}."
        self._metrics.gauge(ENGINE_GAUGE, text, engine=name).set(state)

    def _count(self, name: str, restarts: int) -> None:
        last = self._last.get(name)
        if last is None:
            last = min(self._before(name), restarts)
        self._last[name] = restarts
        series = self._metrics.counter(RESTARTS, "Restarts of an engine.", engine=name)
        # One that went and came back with a reload begins at nothing.
        step = restarts - last if restarts >= last else restarts
        if step:
            series.inc(step)

    def _before(self, name: str) -> int:
        """What was counted before this process was there."""
        label = ("engine", name)
        samples = (s for f in self._arena.collect() if f.name == RESTARTS for s in f.samples)
        return int(sum(sample.value for sample in samples if label in sample.labels))
