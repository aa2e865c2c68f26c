"""Faults that come from use: too many calls at once, or a spent allowance of tokens or requests.

The numbers are the host's, kept in its ledger.

``CallsUnderWay`` gives every process a place of its own in the ledger::

    load:0   pid of the process | its calls under way
    load:1   …                                          the first free place ends the list

so that a process that dies takes its calls with it: the place of a pid that is no more is taken
over, and counts nothing until then.

Invariants: the sum over living processes is the number of calls that began and did not end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Final
from weakref import WeakKeyDictionary

from msgspec import Meta, Struct

from tpo_mp.errors import TpoError
from tpo_mp.ports import Cells, Ledger
from tpo_mp.types import Sink, Stream

BASE: Final = 0.1
"""Probability at the threshold itself."""
MOST_WAIT_S: Final = 300.0
MOST_PROCESSES: Final = 256


class LoadStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strikes more often the more calls are under way.

    With ``excess`` calls over the threshold: p = min(1, 0.1 + excess x slope), and a client is
    told to wait min(300, 2 x excess) seconds.
    """

    over: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Calls under way on this host that are fine.")
    ]
    slope: Annotated[
        float, Meta(ge=0, le=1, description="Added probability per call beyond them.")
    ] = 0.02

    def probability(self, calls: int) -> float:
        """How likely a call fails among so many."""
        excess = calls - self.over
        return min(1.0, BASE + excess * self.slope) if excess > 0 else 0.0

    def wait_s(self, calls: int) -> float:
        """How long the client of a failed call is told to wait."""
        return min(MOST_WAIT_S, 2.0 * max(calls - self.over, 0))


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strikes once so much was used, until the period ends."""

    tokens: Annotated[
        int, Meta(ge=0, le=10**15, description="Prompt and answer tokens; 0: not counted.")
    ] = 0
    requests: Annotated[
        int, Meta(ge=0, le=10**12, description="Answered requests; 0: not counted.")
    ] = 0
    per_s: Annotated[
        float, Meta(gt=0, le=31_536_000, description="Seconds after which all is there again.")
    ] = 3600.0

    def __post_init__(self) -> None:
        if bool(self.tokens) == bool(self.requests):
            raise ValueError("a budget has either tokens or requests")


class Spending:
    """One budget's use on this host; ``name`` is its place in the ledger.

    Its cells: epoch | period | used | —.
    """

    def __init__(self, ledger: Ledger, name: str, budget: Budget, epoch: int) -> None:
        self._ledger = ledger
        self._name = name
        self._budget = budget
        self._epoch = epoch

    def refused_for(self, elapsed_s: float) -> float:
        """Seconds until there is something left; 0: there is, and a request was taken of it."""
        budget = self._budget
        period = elapsed_s // budget.per_s
        spent = False

        def take(cells: Cells) -> Cells:
            nonlocal spent
            used = cells[2] if cells[:2] == (self._epoch, period) else 0.0
            spent = used >= (budget.requests or budget.tokens)
            return self._epoch, period, used + (budget.requests > 0 and not spent), 0.0

        self._ledger.update(self._name, take)
        return (period + 1) * budget.per_s - elapsed_s if spent else 0.0

    def spend(self, tokens: int, elapsed_s: float) -> None:
        """Note the tokens of an answer."""
        budget = self._budget
        if not budget.tokens:
            return
        period = elapsed_s // budget.per_s

        def add(cells: Cells) -> Cells:
            used = cells[2] if cells[:2] == (self._epoch, period) else 0.0
            return self._epoch, period, used + tokens, 0.0

        self._ledger.update(self._name, add)


class CallsUnderWay:
    """How many calls this host has under way, of which this process counts its own."""

    def __init__(self, ledger: Ledger, alive: Callable[[int], bool] | None = None) -> None:
        self._ledger = ledger
        self._alive = alive or _alive
        self._pid = os.getpid()
        self._own = 0
        self._place = -1

    def enter(self) -> None:
        """One more began."""
        self._own += 1
        self._publish()

    def leave(self) -> None:
        """One ended."""
        self._own -= 1
        self._publish()

    def total(self) -> int:
        """All of this host's."""
        total = 0
        for place in range(MOST_PROCESSES):
            pid, calls, *_ = self._ledger.update(f"load:{place}", _same)
            if not pid:
                break
            if pid == self._pid or self._alive(int(pid)):
                total += int(calls)
        return total

    def _publish(self) -> None:
        if self._place >= 0:
            self._ledger.update(f"load:{self._place}", self._write)
            return
        for place in range(MOST_PROCESSES):
            if self._ledger.update(f"load:{place}", self._write)[0] == self._pid:
                self._place = place
                return

    def _write(self, cells: Cells) -> Cells:
        pid = int(cells[0])
        if pid in (0, self._pid) or not self._alive(pid):
            return float(self._pid), float(self._own), 0.0, 0.0
        return cells


def under_way_of(ledger: Ledger) -> CallsUnderWay:
    """The count of this process, whichever of its providers asks."""
    found = _counts.get(ledger)
    if found is None:
        found = _counts[ledger] = CallsUnderWay(ledger)
    return found


_counts: Final[WeakKeyDictionary[Ledger, CallsUnderWay]] = WeakKeyDictionary()


def _same(cells: Cells) -> Cells:
    return cells


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class EndTold:
    """A ``Stream`` whose end, or whose being given up, is told once."""

    __slots__ = ("_inner", "_sink", "_tell")

    def __init__(self, inner: Stream, tell: Callable[[], None]) -> None:
        self._inner = inner
        self._tell: Callable[[], None] | None = tell
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """Begin."""
        self._sink = sink
        self._inner.attach(self)

    def pause(self) -> None:
        """Hold back."""
        self._inner.pause()

    def resume(self) -> None:
        """Go on."""
        self._inner.resume()

    def cancel(self) -> None:
        """Nobody listens any more."""
        self._inner.cancel()
        self._over()

    def data(self, chunk: bytes) -> None:
        """Pass on."""
        assert self._sink is not None
        self._sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        """Pass on, and tell."""
        self._over()
        assert self._sink is not None
        self._sink.end(error)

    def _over(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()
