"""The circuit breaker of a simulated provider: after failures it refuses, until it is well again.

::

    closed ──  `failures` within `within_s` ──► open ── `open_s` later ──► half open
       ▲                                          ▲                           │  │
       └────────── `successes` in a row ──────────┼───────────────────────────┘  │
                                                  └─────── one failure ──────────┘

What fails are the errors its rules inject; what succeeds are answers.  One breaker stands for the
whole host, in the ledger::

    NAME      epoch | state | since | successes
    NAME/n    epoch | when failure n mod (failures - 1) happened
    NAME/#    epoch | number of failures

Invariants: a failure opens it exactly if it is the `failures`-th within `within_s`, however many
processes saw them; in half open state every call is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from tpo_mp.ports import Cells, Ledger

State: TypeAlias = Literal["closed", "open", "half_open"]
_STATES: Final[tuple[State, ...]] = ("closed", "open", "half_open")
_CLOSED, _OPEN, _HALF = 0.0, 1.0, 2.0


class BreakerRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a breaker opens and closes."""

    failures: Annotated[int, Meta(ge=1, le=100, description="Failures that open it.")] = 5
    within_s: Annotated[float, Meta(gt=0, le=86_400, description="In so many seconds.")] = 10.0
    open_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Seconds it refuses before it tries again.")
    ] = 30.0
    successes: Annotated[
        int, Meta(ge=1, le=1000, description="Successes in a row that close it.")
    ] = 3


class SimulatedBreaker:
    """One host's breaker; instants are seconds of the host's clock."""

    def __init__(self, ledger: Ledger, name: str, rule: BreakerRule, epoch: int) -> None:
        self._ledger = ledger
        self._name = name
        self._rule = rule
        self._epoch = float(epoch)

    def refused_for(self, now: float) -> float:
        """Seconds that it stays open; 0: the call may be tried."""

        def aged(state: float, since: float, good: float) -> tuple[float, float, float]:
            return self._aged(state, since, good, now)

        _, state, since, _ = self._change(aged)
        return max(since + self._rule.open_s - now, 0.001) if state == _OPEN else 0.0

    def state(self, now: float) -> State:
        """How it stands."""
        self.refused_for(now)
        return _STATES[int(self._change(lambda *same: same)[1])]

    def succeeded(self) -> None:
        """A call was answered."""
        self._change(self._after_success)

    def failed(self, now: float) -> None:
        """A call failed."""
        full = self._full(now)

        def after(state: float, since: float, good: float) -> tuple[float, float, float]:
            state, since, good = self._aged(state, since, good, now)
            if state == _HALF or (state == _CLOSED and full is not None and full >= since):
                return _OPEN, now, 0.0
            return state, since, good

        self._change(after)

    def _full(self, now: float) -> float | None:
        """When the first of the last `failures` failures was, if that is recent enough."""
        needed = self._rule.failures
        if needed == 1:
            return now
        number = int(self._own(f"{self._name}/#", lambda value: value + 1))
        earlier = 0.0

        def put(before: float) -> float:
            nonlocal earlier
            earlier = before
            return now

        self._own(f"{self._name}/{number % (needed - 1)}", put)
        recent = number >= needed and now - earlier <= self._rule.within_s
        return earlier if recent else None

    def _own(self, name: str, change: Callable[[float], float]) -> float:
        """Change the one number of a name, which is 0 in a new epoch."""

        def after(cells: Cells) -> Cells:
            value = cells[1] if cells[0] == self._epoch else 0.0
            return self._epoch, change(value), 0.0, 0.0

        return self._ledger.update(name, after)[1]

    def _change(self, change: Callable[[float, float, float], tuple[float, float, float]]) -> Cells:

        def after(cells: Cells) -> Cells:
            known = cells[1:] if cells[0] == self._epoch else (_CLOSED, 0.0, 0.0)
            return (self._epoch, *change(*known))

        return self._ledger.update(self._name, after)

    def _aged(
        self, state: float, since: float, good: float, now: float
    ) -> tuple[float, float, float]:
        """What has become of a state by now."""
        if state == _OPEN and now >= since + self._rule.open_s:
            return _HALF, now, 0.0
        return state, since, good

    def _after_success(self, state: float, since: float, good: float) -> tuple[float, float, float]:
        if state != _HALF:
            return state, since, good
        if good + 1 >= self._rule.successes:
            return _CLOSED, since, 0.0
        return state, since, good + 1
