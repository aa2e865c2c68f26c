"""The breaker's rows in the ledger: how they are called, changed and counted.

A breaker's name is ``BACKEND`` or ``BACKEND:MODEL``, as people see it; its rows are::

    breaker:network:BACKEND          not reached, or the line broke
    breaker:credential:BACKEND       our key was refused
    breaker:backend:BACKEND:MODEL    it failed, fell silent or answered nonsense
    breaker:capacity:BACKEND:MODEL   the bench: it said when to come back

Models that the config names have places of their own in the ledger; others are of the crowd.

Invariants: a change happens once, on the newest state, and only if the state is still of the
generation that the change is about; who makes a change of state counts it.
Known weakness: a worker killed between change and count leaves the count one short.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Counter, Env, Watch

from .attribution import Blame
from .circuit import Circuit, pack, unpack

OF_BACKEND: Final = (Blame.NETWORK, Blame.CREDENTIAL)
OF_MODEL: Final = (Blame.BACKEND, Blame.CAPACITY)
FAILURES: Final = "tpo_breaker_failures_total"
"""Its ``breaker`` labels are the names there are: of the config, and of models that failed."""
SUCCESSES: Final = "tpo_breaker_successes_total"
MAX_NAME: Final = 63
"""A longer name is no label of its own (metrics cut it), and is listed only if configured."""
ANY: Final = "*"
"""The model of a label that says: this backend serves more models than the config names."""
_EVENTS: Final = {
    "open": "breaker_opened", "half_open": "breaker_probed", "closed": "breaker_closed",
}  # fmt: skip
_FAILURES_HELP: Final = "Failed tries that a breaker counted, by whose fault they were."
_TRANSITIONS: Final = "orchestrator_circuit_breaker_state_transitions_total"


class BreakerRow(NamedTuple):
    """One row: the breaker it belongs to, the fault it is about, and whether it is the crowd's."""

    name: str
    fault: Blame
    crowd: bool

    @property
    def row(self) -> str:
        """Its name in the ledger."""
        return f"breaker:{self.fault.value}:{self.name}"


class Serving(Protocol):
    """What is asked of a backend's config here."""

    @property
    def name(self) -> str: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def model_map(self) -> Collection[str]: ...


class KnownTargets:
    """Which models the config names."""

    def __init__(self, entries: Sequence[Serving] = ()) -> None:
        self.models = {
            entry.name: [m for m in entry.models if not set(m) & set("*?[")] + [*entry.model_map]
            for entry in entries
        }
        self._names = {(b, m) for b, models in self.models.items() for m in models}
        self.open_ended = {e.name for e in entries if any(set(m) & set("*?[") for m in e.models)}

    def places(
        self, backend: str, model: str
    ) -> tuple[BreakerRow, BreakerRow, BreakerRow, BreakerRow]:
        """The rows of a target: its three circuits and its bench."""
        name, crowd = f"{backend}:{model}", (backend, model) not in self._names
        return (
            BreakerRow(backend, Blame.NETWORK, False),
            BreakerRow(backend, Blame.CREDENTIAL, False),
            BreakerRow(name, Blame.BACKEND, crowd),
            BreakerRow(name, Blame.CAPACITY, crowd),
        )


class BreakerRows:
    """Changes rows, and counts what it changed."""

    def __init__(self, env: Env) -> None:
        self._ledger = env.ledger
        self._metrics = env.metrics
        self._log = env.log
        self._transitions = {
            state: env.metrics.counter(
                _TRANSITIONS, "Changes of a breaker's state, by the new one.", state=state
            )
            for state in ("closed", "half_open", "open")
        }
        self._failures: dict[tuple[str, Blame], Counter] = {}
        self._lost = env.metrics.counter(
            "tpo_breaker_lost_total", "Outcomes that a breaker could not write down."
        )

    def watch(self, places: Iterable[BreakerRow]) -> Watch:
        """Look at rows; those of the crowd must come last."""
        rows = list(places)
        return self._ledger.watch(
            *(place.row for place in rows if not place.crowd),
            crowd=[place.row for place in rows if place.crowd],
        )

    def change(
        self,
        place: BreakerRow,
        turn: Callable[[Circuit], Circuit | None],
        generation: int | None = None,
    ) -> Circuit | None:
        """Turn a circuit into another one; ``None``: there was nothing to change, or no way to.

        With a generation only if it still is of that one.
        """
        before: Circuit | None = None
        after: Circuit | None = None

        def apply(cells: Cells) -> Cells:
            nonlocal before, after
            before = unpack(cells)
            fits = generation is None or before.generation == generation
            after = turn(before) if fits else None
            return cells if after is None else pack(after)

        try:
            cells = self._ledger.update(place.row, apply, crowd=place.crowd)
        except Shed:
            self._lost.inc()
            return None
        if before is None or after is None:
            return None
        after = unpack(cells)
        kind = _kind(after)
        if kind != _kind(before) and place.fault is not Blame.CAPACITY:
            self._transitions[kind].inc()
            self._log.warning(
                _EVENTS[kind], breaker=place.name[:200], fault=place.fault.value,
                failures=after.failures, probe_failures=after.probe_failures,
            )  # fmt: skip
        return after

    def introduce(self, known: KnownTargets) -> None:
        """Make the names of a config known to all who read the host's metrics."""
        for backend, models in known.models.items():
            self.failures(BreakerRow(backend, Blame.NETWORK, False))
            for model in [*models, *([ANY] if backend in known.open_ended else [])]:
                self.failures(BreakerRow(f"{backend}:{model}", Blame.BACKEND, False))

    def successes(self, name: str) -> Counter:
        """What counts a target's good answers."""
        label = name if len(name) <= MAX_NAME else "other"
        return self._metrics.counter(SUCCESSES, "Good answers by breaker.", breaker=label)

    def failures(self, place: BreakerRow) -> Counter:
        """What counts the failures that a circuit took notice of."""
        key = (place.name if len(place.name) <= MAX_NAME else "other", place.fault)
        counter = self._failures.get(key)
        if counter is None:
            counter = self._failures[key] = self._metrics.counter(
                FAILURES, _FAILURES_HELP, breaker=key[0], fault=key[1].value
            )
        return counter


def _kind(c: Circuit) -> str:
    return "closed" if not c.until else "half_open" if c.half else "open"
