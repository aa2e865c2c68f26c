"""Who is next: calls that wait for a place, in the order they are to get one.

A higher priority goes first; inside one, tenants share by weight; of a tenant's calls the one with
the earliest deadline goes first, then the oldest.

Nobody starves.  A call is *overdue* once it has waited ``aging_s`` for each class it could still
rise (a low one four times that, a critical one once), and every ``RESCUE_EVERY``-th place goes to
the call that has been overdue for longest.  So a call that is overdue behind ``m`` others is served
within ``RESCUE_EVERY * (m + 1)`` places, whatever comes after it.

Sharing is start-time fair queueing: a tenant's clock advances by 1 / weight for each of its calls
that is served (a rescued one too), and the tenant whose clock is behind goes first.  A tenant that
comes back keeps its clock until the others have caught up, so that coming one at a time wins
nothing.

Invariants: a waiter leaves once, by ``pop``, ``remove`` or ``expire``; one whose deadline has
passed is never popped; what is kept is bounded by who waits, and by ``REMEMBERED`` clocks a class.
Known weakness: a call counts as one whatever it costs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from operator import itemgetter
from typing import Final, TypeAlias

from tpo_mp.types import NO_DEADLINE, Priority

RESCUE_EVERY: Final = 4
"""One place in so many is for whoever has been overdue for longest."""
REMEMBERED: Final = 4096
_SPARE: Final = 64


class Waiter:
    """A call that waits; instants are ``time.monotonic`` seconds."""

    __slots__ = (
        "arrived_at", "deadline", "key", "level", "overdue_at", "tenant", "waits", "weight",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        *,
        level: int = Priority.NORMAL,
        tenant: str = "",
        weight: float = 1.0,
        arrived_at: float = 0.0,
        deadline: float = NO_DEADLINE,
        aging_s: float = 5.0,
    ) -> None:
        self.key = key
        self.level = min(max(level, Priority.LOW), Priority.CRITICAL)
        self.tenant = tenant
        self.weight = weight
        self.arrived_at = arrived_at
        self.deadline = deadline
        self.overdue_at = arrived_at + aging_s * (Priority.CRITICAL + 1 - self.level)
        self.waits = False


_Entry: TypeAlias = tuple[float, float, int, Waiter]


class _Tenant:
    """One tenant's calls of one class, earliest deadline first."""

    __slots__ = ("calls", "clock", "queued", "waiting", "weight")

    def __init__(self) -> None:
        self.calls: list[_Entry] = []
        self.waiting = 0
        self.clock = 0.0
        self.weight = 1.0
        self.queued = False


class _Class:
    """The calls of one priority."""

    __slots__ = ("_present", "_ready", "_tenants", "_turns", "clock", "waiting")

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._present: dict[str, _Tenant] = {}
        """Those of them that wait: far fewer than are remembered, and looked at for each call."""
        self._ready: list[tuple[float, int, _Tenant]] = []
        self._turns = count()
        self.clock = 0.0
        self.waiting = 0

    def add(self, waiter: Waiter, number: int) -> None:
        tenants = self._tenants
        tenant = tenants.get(waiter.tenant)
        if tenant is None:
            if len(tenants) >= REMEMBERED + self.waiting:
                self._forget()
            tenant = tenants[waiter.tenant] = _Tenant()
        tenant.weight = waiter.weight
        if not tenant.waiting:
            self._present[waiter.tenant] = tenant
        tenant.waiting += 1
        self.waiting += 1
        heappush(tenant.calls, (waiter.deadline, waiter.arrived_at, number, waiter))
        if not tenant.queued:
            tenant.clock = max(tenant.clock, self.clock)
            self._queue(tenant)

    def first(self) -> Waiter:
        """Whose turn it is; the class is not empty."""
        while True:
            clock, _, tenant = heappop(self._ready)
            tenant.queued = False
            calls = tenant.calls
            while calls and not calls[0][3].waits:
                heappop(calls)
            if not calls:
                continue
            if tenant.clock > clock:  # it was rescued meanwhile: others may be before it
                self._queue(tenant)
                continue
            self.clock = max(self.clock, clock)
            return heappop(calls)[3]

    def left(self, waiter: Waiter, *, served: bool) -> None:
        """One less; a served one moves its tenant's clock."""
        self.waiting -= 1
        tenant = self._tenants[waiter.tenant]
        tenant.waiting -= 1
        if not tenant.waiting:
            del self._present[waiter.tenant]
        if served:
            tenant.clock += 1 / waiter.weight
        if not self.waiting:  # nobody to be fair to
            self._tenants.clear()
            self._ready.clear()
            self.clock = 0.0
        elif tenant.waiting:
            if not tenant.queued:
                self._queue(tenant)
            if len(tenant.calls) > 2 * tenant.waiting + _SPARE:
                tenant.calls = [entry for entry in tenant.calls if entry[3].waits]
                heapify(tenant.calls)
        else:
            tenant.calls.clear()

    def before(self, tenant: str, weight: float) -> float:
        """How many of the class are served before one more of a tenant's."""
        mine = self._present.get(tenant)
        own = mine.waiting if mine is not None else 0
        others = 0.0
        for other in self._present.values():
            if other is not mine:
                others += min(other.waiting, (own + 1) * other.weight / weight)
        return own + others

    def _queue(self, tenant: _Tenant) -> None:
        tenant.queued = True
        heappush(self._ready, (tenant.clock, next(self._turns), tenant))

    def _forget(self) -> None:
        """Drop the clocks of tenants that do not wait: first those others have caught up with.

        Never only a few, or the next strangers would each have all of them looked at again.
        """
        idle = [(t.clock, name) for name, t in self._tenants.items() if not t.waiting]
        idle.sort()
        caught_up = bisect_right(idle, self.clock, key=itemgetter(0))
        for _, name in idle[: max(caught_up, len(idle) // 8 + 1)]:
            # One still in ``_ready`` is passed over there: it has no calls.
            del self._tenants[name]


class Lanes:
    """Everybody who waits for one thing."""

    __slots__ = ("_classes", "_ends", "_number", "_overdue", "_popped", "_waiting")

    def __init__(self) -> None:
        self._classes = tuple(_Class() for _ in Priority)
        self._overdue: list[_Entry] = []
        self._ends: list[_Entry] = []
        self._number = count()
        self._popped = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, waiter: Waiter) -> None:
        """Let one more wait."""
        number = next(self._number)
        waiter.waits = True
        self._waiting += 1
        self._classes[waiter.level].add(waiter, number)
        heappush(self._overdue, (waiter.overdue_at, waiter.arrived_at, number, waiter))
        if waiter.deadline != NO_DEADLINE:
            heappush(self._ends, (waiter.deadline, waiter.arrived_at, number, waiter))
        limit = 2 * self._waiting + _SPARE
        if len(self._overdue) > limit:
            self._overdue = _living(self._overdue)
        if len(self._ends) > limit:
            self._ends = _living(self._ends)

    def remove(self, waiter: Waiter) -> bool:
        """Let one leave; False when it does not wait here any more."""
        if not waiter.waits:
            return False
        self._leave(waiter, served=False)
        return True

    def expire(self, now: float) -> list[Waiter]:
        """Take out those whose deadline has passed."""
        gone: list[Waiter] = []
        ends = self._ends
        while ends and (ends[0][0] <= now or not ends[0][3].waits):
            waiter = heappop(ends)[3]
            if waiter.waits:
                self._leave(waiter, served=False)
                gone.append(waiter)
        return gone

    def pop(self, now: float) -> Waiter | None:
        """Take out the one whose turn it is; call ``expire`` first to hear of those too late."""
        while self._waiting:
            waiter = self._next(now)
            in_time = waiter.deadline > now
            self._leave(waiter, served=in_time)
            if in_time:
                self._popped += 1
                return waiter
        return None

    def before(self, level: int, tenant: str, weight: float) -> float:
        """How many are served before one that comes now, if nobody came after it."""
        higher = sum(self._classes[n].waiting for n in range(level + 1, len(self._classes)))
        return higher + self._classes[level].before(tenant, weight)

    def waiting(self, level: int) -> int:
        """How many of a class wait."""
        return self._classes[level].waiting

    def _next(self, now: float) -> Waiter:
        if self._popped % RESCUE_EVERY == RESCUE_EVERY - 1:
            overdue = self._overdue
            while not overdue[0][3].waits:
                heappop(overdue)
            if overdue[0][0] <= now:
                return overdue[0][3]
        return next(c for c in reversed(self._classes) if c.waiting).first()

    def _leave(self, waiter: Waiter, *, served: bool) -> None:
        waiter.waits = False
        self._waiting -= 1
        self._classes[waiter.level].left(waiter, served=served)
        if not self._waiting:
            self._overdue.clear()
            self._ends.clear()


def _living(entries: list[_Entry]) -> list[_Entry]:
    kept = [entry for entry in entries if entry[3].waits]
    heapify(kept)
    return kept
