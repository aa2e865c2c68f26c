"""One engine at work: its steps in real time, and who hears of each token.

::

    submit ─► engine ─► step: due at an absolute instant ─► told, some at a time ─► next step

A step begins where the one before it ended, not when the loop got round to it, so lateness does
not add up; after more than ``LATE_S`` the lost time is given up.  Nothing is told from within
``submit``.

Invariants: there is a step under way, or something still to tell, whenever a request is in the
engine, unless it is frozen or all wait that are held; a cancelled request is told nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from .engine_metrics import EngineMetrics
from .engine_steps import EngineFull, EngineRequest, EngineShape, StepEngine
from .timer import NEVER, MicroTimer

LATE_S: Final = 0.25
TOLD_AT_ONCE: Final = 16
"""Tokens told before others on the loop have their turn."""


@dataclass(slots=True, eq=False)
class Guest:
    """A request in a room, and who hears of its tokens.

    ``reason``, ``choices`` and ``limit`` are what metrics say about it at its end.
    """

    request: EngineRequest
    tell: Callable[[EngineRequest], None]
    reason: str = "stop"
    choices: int = 1
    limit: int = 0


class EngineRoom:
    """Runs a ``StepEngine``; an entry of the worker's timer."""

    def __init__(
        self, shape: EngineShape, timer: MicroTimer, clock: Callable[[], float],
        metrics: EngineMetrics,
    ) -> None:  # fmt: skip
        self.engine = StepEngine(shape)
        self.factor = 1.0
        """A step takes so many times what the shape says."""
        self.stopped = False
        self.told: Callable[[], None] = _nothing
        """Called after some tokens were told."""
        self.before: Callable[[], None] = _nothing
        """Called before a step begins."""
        self._timer = timer
        self._clock = clock
        self._metrics = metrics
        self._guests: dict[EngineRequest, Guest] = {}
        self._telling: Iterator[EngineRequest] = iter(())
        self._ends_at = 0.0
        self._busy = False
        self._frozen = False
        self._emptied = False
        metrics.level(self.engine)

    def submit(self, guest: Guest, arrived_at: float) -> None:
        """Let a request in; raises ``EngineFull``."""
        try:
            self.engine.submit(guest.request, arrived_at)
        except EngineFull:
            self._metrics.refused()
            raise
        self._guests[guest.request] = guest
        self._go_on()

    def _go_on(self) -> None:
        """Begin a step, unless one is under way or none may begin."""
        if not self._busy and not self._frozen:
            self._begin(self._clock())
            if self._busy:
                self._timer.add(self._ends_at, self)
        self._metrics.level(self.engine)

    def freeze(self, *, emptied: bool) -> None:
        """Begin no step until ``thaw``; who is here stays, and who comes waits.

        ``emptied``: they lose their blocks, and are computed anew.
        """
        self._frozen = True
        self._emptied = self._emptied or emptied
        if not self._busy:
            self._settle()

    def hold(self) -> None:
        """Let those that run go on until ``thaw``, and nobody begin."""
        self._frozen = self._emptied = False
        self.engine.held = True
        self._go_on()

    def thaw(self) -> None:
        """Go on with who is here."""
        if self._frozen or self.engine.held:
            self._frozen = self._emptied = self.engine.held = False
            self._go_on()

    def _settle(self) -> None:
        """No step is under way, and none begins."""
        self._busy = False
        if self._emptied:
            self.engine.put_back()
            self.engine.kv.forget()
        self._metrics.counts(self.engine)
        self._metrics.level(self.engine)

    def cancel(self, guest: Guest) -> None:
        """Forget a request, unless it is over."""
        if self._guests.pop(guest.request, None) is None:
            return
        self.engine.cancel(guest.request)
        self._metrics.aborted()
        self._metrics.level(self.engine)

    @property
    def load(self) -> int:
        """How full it is: one that waits weighs as much as four that run."""
        return 4 * len(self.engine.waiting) + len(self.engine.running)

    def give_up(self) -> None:
        """Break off all that are here: they are over, with the tokens they have."""
        for guest in list(self._guests.values()):
            self.cancel(guest)
            guest.tell(guest.request)

    def sleep(self, level: int) -> None:
        """Tell how deep it sleeps; see ``EngineMetrics.sleeping``."""
        self._metrics.sleeping(level)

    def due(self, now: float) -> float:
        """End a step, tell of its tokens, begin the next; when that ends."""
        if self.engine.stepping:
            self._telling = iter(self.engine.end(self._ends_at))
        told = 0
        for request in islice(self._telling, TOLD_AT_ONCE):
            told += 1
            self._tell(request)
        self.told()
        if told == TOLD_AT_ONCE:
            return now
        self.before()
        if self._frozen:
            self._settle()
            return NEVER
        began_at = self._ends_at if now - self._ends_at < LATE_S else now
        self._begin(began_at)
        self._metrics.counts(self.engine)
        self._metrics.level(self.engine)
        return self._ends_at if self._busy else NEVER

    def _begin(self, at: float) -> None:
        took = self.engine.begin(at)
        self._busy = took > 0
        if self._busy:
            self._ends_at = at + took * self.factor
            self._metrics.stepped(self.engine)

    def _tell(self, request: EngineRequest) -> None:
        guest = self._guests.get(request)
        if guest is None:
            return
        self._metrics.spoke(request)
        if request.over:
            del self._guests[request]
            self._metrics.ended(request, guest.reason, guest.choices, guest.limit)
        guest.tell(request)


def _nothing() -> None:
    """Nobody waits for it."""
