"""Leaves backends that are down, loading or drained out of the choice; see ``shm.standing``.

A route asks a backend that is down or starting only when no other is left: the checks may be the
ones that are wrong, and its own answer is as honest as ours.  One that an operator drains is asked
never, and a call for which nothing else is left is refused with 503.

Invariants: a look costs two words per backend, a hundred times a second; nobody waits for control.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final

from tpo_mp.errors import CircuitOpen
from tpo_mp.ports import Cells, Env
from tpo_mp.shm.standing import AWAY, Fitness, drain_row, health_row, read_standing
from tpo_mp.types import Call, Reply

from .chain import Serve

RETRY_AFTER_S: Final = 5
LOOK_S: Final = 0.01
"""A route looks at each of its backends for each call; so long they stand as they did."""


class Standings:
    """How the backends of a config stand, for the routes of one process."""

    def __init__(self, env: Env, backends: Sequence[str]) -> None:
        names = tuple(backends)
        self._names = names
        self._clock = env.clock
        self._watch = env.ledger.watch(*map(health_row, names), *map(drain_row, names))
        self._seen: tuple[Cells, ...] = ()
        self._due = self._next = float("-inf")
        self._out: frozenset[str] = frozenset()
        self._drained: frozenset[str] = frozenset()

    def advises(self, call: Call, backend: str) -> bool:  # noqa: ARG002 - the shape of an advice
        """Whether another backend is better."""
        self._look()
        return backend in self._out

    def refuses(self, call: Call, backend: str) -> bool:  # noqa: ARG002 - the shape of a guard
        """Whether it takes no calls."""
        self._look()
        return backend in self._drained

    def guarded(self, serve: Serve, backend: str) -> Serve:
        """``serve``, which a backend that is drained refuses."""
        clock = self._clock

        def attempt(call: Call) -> Awaitable[Reply]:
            if clock() >= self._next:
                self._look()
            if backend in self._drained:
                raise CircuitOpen(
                    f"backend {backend!r} takes no new calls",
                    reason="backend_draining",
                    retry_after_s=RETRY_AFTER_S,
                )
            return serve(call)

        return attempt

    def _look(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_S
        seen = self._watch.peek()
        if seen is self._seen and now <= self._due:
            return
        self._seen, count = seen, len(self._names)
        rows = {
            name: read_standing(seen[at], seen[at + count]) for at, name in enumerate(self._names)
        }
        states = {name: row.standing(now) for name, row in rows.items()}
        self._out = frozenset(name for name, state in states.items() if state in AWAY)
        self._drained = frozenset(n for n, state in states.items() if state is Fitness.DRAINING)
        # What is not renewed lapses.
        self._due = min((rows[name].until for name in self._out), default=float("inf"))
