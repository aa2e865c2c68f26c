"""All breakers of the host at a glance, from shared memory alone: for REST, health and metrics.

Names are the labels of ``breaker_rows.FAILURES``, which every worker makes for the backends and
models of its config and for models that failed; states are the ledger's.  Whoever has the arena and
the ledger sees the same, control as well as each worker, and asks no process.

A backend's own state is the worse one of its two circuits; it counts as shut, too, when all its
models are and it serves no others.

Invariants: nothing is written and nothing waited for.
Known weakness: metrics keep 64 labels per process, so of more breakers some are in no list but that
of a surface, which adds the config's.  A backend that a reload took away stays listed, as closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tpo_mp.observe.health import BREAKER_GAUGE, ArenaView, FamilyView
from tpo_mp.ports import Cells
from tpo_mp.shm.metrics import OTHER
from tpo_mp.shm.scrape import Family, Sample

from .attribution import Blame
from .breaker_rows import ANY, FAILURES, OF_BACKEND, SUCCESSES, BreakerRow
from .circuit import Circuit, State, unpack

_LEVEL: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}
_HELP: Final = {
    BREAKER_GAUGE: "State of a breaker: 0 closed, 1 half open, 2 open.",
    "orchestrator_circuit_breaker_failures": "Failures in a row.",
    "orchestrator_circuit_breaker_next_probe_seconds": "Seconds until it may be probed.",
    "orchestrator_circuit_breaker_probe_failures": "Failed probes in a row.",
}


class Looks(Protocol):
    """What is needed of the ledger."""

    def look(self, name: str, *, crowd: bool = False) -> Cells:
        """A name's numbers."""
        ...


@dataclass(frozen=True, slots=True)
class BreakerView:
    """One breaker: its circuits by fault, and how many calls it counted since the host's start."""

    name: str
    circuits: dict[Blame, Circuit]
    bench_s: float
    """Seconds for which routes leave it out because it asked for a pause."""
    failed: int
    succeeded: int
    shut_by_models: bool = False

    def state(self, now: float) -> State:
        """The worst state of its circuits."""
        return max((c.state(now) for c in self.circuits.values()), key=_LEVEL.__getitem__)

    def worst(self, now: float) -> Circuit:
        """The circuit that has its state."""
        return max(self.circuits.values(), key=lambda c: (_LEVEL[c.state(now)], c.failures))

    def next_probe_s(self, now: float) -> float:
        """How long until all its circuits let a probe through; 0: they do, or are closed."""
        return max(max(c.until - now, 0.0) for c in self.circuits.values())


class BreakerBoard:
    """Reads them."""

    def __init__(self, arena: ArenaView, ledger: Looks) -> None:
        self._arena = arena
        self._ledger = ledger

    def views(self, now: float, more: Sequence[str] = ()) -> list[BreakerView]:
        """Every breaker there is, and those named in ``more``, by name."""
        return self.read(list(self._arena.collect()), now, more)

    def read(
        self, families: Iterable[FamilyView], now: float, more: Sequence[str] = ()
    ) -> list[BreakerView]:
        """The same from families that were collected already."""
        failed, succeeded = _sums(families)
        names = sorted({*failed, *more} - {OTHER})
        open_ended = {name.partition(":")[0] for name in names if name.endswith(f":{ANY}")}
        found = {
            name: self._view(name, now, failed.get(name, 0), succeeded)
            for name in names
            if not name.endswith(f":{ANY}")
        }
        for name, view in found.items():
            mine = [v for n, v in found.items() if n.startswith(f"{name}:")]
            if ":" not in name and mine and name not in open_ended:
                shut = all(v.state(now) is State.OPEN for v in mine)
                object.__setattr__(view, "shut_by_models", shut)
        return list(found.values())

    def _view(self, name: str, now: float, failed: int, succeeded: dict[str, int]) -> BreakerView:
        if ":" not in name:
            circuits = {fault: self._circuit(name, fault) for fault in OF_BACKEND}
            good = sum(n for label, n in succeeded.items() if label.partition(":")[0] == name)
            return BreakerView(name, circuits, 0.0, failed, good)
        bench = self._circuit(name, Blame.CAPACITY)
        circuits = {Blame.BACKEND: self._circuit(name, Blame.BACKEND)}
        rest_s = max(bench.until - now, 0.0)
        return BreakerView(name, circuits, rest_s, failed, succeeded.get(name, 0))

    def _circuit(self, name: str, fault: Blame) -> Circuit:
        row = BreakerRow(name, fault, False).row
        named = unpack(self._ledger.look(row))
        return named if named != Circuit() else unpack(self._ledger.look(row, crowd=True))


class BreakerSeries:
    """The host's metrics with the breakers' states among them; an ``ArenaView``."""

    def __init__(self, arena: ArenaView, ledger: Looks, clock: _Clock) -> None:
        self._arena = arena
        self._board = BreakerBoard(arena, ledger)
        self._clock = clock

    def collect(self) -> Iterator[FamilyView]:
        """All families."""
        families = list(self._arena.collect())
        yield from families
        now = self._clock()
        views = self._board.read(families, now)
        if views:
            yield from _families(views, now)


class _Clock(Protocol):
    def __call__(self) -> float: ...


def _families(views: Sequence[BreakerView], now: float) -> Iterator[Family]:
    rows = [
        (
            view.name,
            2 if view.shut_by_models else _LEVEL[view.state(now)],
            view.worst(now).failures,
            view.next_probe_s(now),
            view.worst(now).probe_failures,
        )
        for view in views
    ]
    for place, (name, text) in enumerate(_HELP.items(), 1):
        samples = tuple(Sample((("worker", row[0]),), float(row[place])) for row in rows)
        yield Family(name, text, "gauge", samples)


def _sums(families: Iterable[FamilyView]) -> tuple[dict[str, int], dict[str, int]]:
    """Failures and successes by breaker."""
    found: dict[str, dict[str, int]] = {FAILURES: {}, SUCCESSES: {}}
    for family in families:
        sums = found.get(family.name)
        if sums is not None:
            for sample in family.samples:
                name = dict(sample.labels)["breaker"]
                sums[name] = sums.get(name, 0) + int(sample.value)
    return found[FAILURES], found[SUCCESSES]
