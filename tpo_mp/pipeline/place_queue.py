"""The queue for the places at one backend: kept by one process for the whole host.

Whoever waits is somewhere: in this process or in another one.  Its turn is told, and a place is
held for it here until it says that it holds the place itself, or that it does not want it any more;
both are the same to the queue, which lets go of what it held.

Invariants: a place is held, here or there, for each turn that was told; at most ``places`` of them
are held on the host (0: there is no limit); a turn nobody answers is told again; those of a
process that died are gone at the next ``tick``.
Known weakness: how long one will wait is estimated from places that became free
(``pipeline.drain_rate``), so the first calls of a rush are let in blindly, up to their deadlines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from tpo_mp.ports import Share

from .drain_rate import DrainRate
from .lanes import Lanes, Waiter
from .overtaking import Overtaking
from .place_math import MANY

TOLD_AGAIN_S: Final = 0.5
NEXT_PART: Final = 2
"""Among the next is whose place is in the first such part of all."""
UNHEARD: Final = 0.0
Who: TypeAlias = tuple[int, int]
"""A seat, and its number for a call."""


class Crier(Protocol):
    """Tells those who wait; answers whether it was heard."""

    def turn(self, who: Who, wait_s: float) -> bool: ...

    def refuse(self, who: Who, wait_s: float, *, early: bool) -> bool: ...


class _Entry:
    """One that waits ``since`` the turn ``turns``, or whose turn was told at ``told_at``.

    ``ahead`` is how many places were to come until its own when it came.
    """

    __slots__ = ("ahead", "life", "reserved", "since", "told_at", "turned", "turns", "waiter")

    def __init__(
        self, waiter: Waiter, life: tuple[int, int], since: float, turns: int, ahead: float
    ) -> None:
        self.waiter = waiter
        self.life = life
        self.since = since
        self.turns = turns
        self.ahead = ahead
        self.turned = False
        self.reserved = False
        self.told_at = UNHEARD


class PlaceQueue:
    """Those who wait for one backend."""

    def __init__(
        self, share: Share, crier: Crier, life_of: Callable[[int], tuple[int, int]]
    ) -> None:
        self.limit = 0
        self._share = share
        self._crier = crier
        self._life_of = life_of
        self._lanes = Lanes()
        self._entries: dict[Who, _Entry] = {}
        self._rate = DrainRate()
        self._overtaking = Overtaking()
        self._pumping = False
        self._again = False

    @property
    def places(self) -> int:
        """How many there are now: what was said, or what the host found out."""
        return self.limit if self.limit >= 0 else self._share.limit or MANY

    @property
    def busy(self) -> bool:
        """Whether anybody waits or was told and did not answer."""
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._lanes)

    def ask(self, who: Who, waiter: Waiter, limit: int, now: float) -> None:
        """One more wants a place, or asks again whether it is its turn."""
        changed, self.limit = limit != self.limit, limit
        life = self._life_of(who[0])
        entry = self._entries.get(who)
        if entry is not None and entry.life == life:
            if entry.turned:
                self._tell(who, entry, now)
            if changed:
                self.pump(now)
            return
        if entry is not None:
            self._drop(who, entry)
        in_time, ahead = waiter.deadline > now, self._ahead(waiter)
        if not in_time or (len(self._lanes) and self._too_far(waiter, ahead, now)):
            self._crier.refuse(who, self._wait_s(waiter, ahead, now), early=in_time)
            return
        self._rate.begin(now)
        self._entries[who] = _Entry(waiter, life, now, self._rate.total, ahead)
        self._lanes.add(waiter)
        self.pump(now)

    def gone(self, who: Who, now: float) -> None:
        """One does not wait any more; after its turn was told it is heard by ``kept``."""
        entry = self._entries.get(who)
        if entry is not None and not entry.turned:
            self._drop(who, entry)
            self._counted(now)

    def kept(self, who: Who, now: float) -> None:
        """One has taken its place, or does not want it."""
        entry = self._entries.get(who)
        if entry is not None and entry.turned:
            self._drop(who, entry)
            self.pump(now)

    def pump(self, now: float) -> None:
        """Tell as many as there are places."""
        if self._pumping:  # a call that was told ended at once
            self._again = True
            return
        self._pumping = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._hand_out(now)
        finally:
            self._pumping = False
        self._counted(now)

    def _counted(self, now: float) -> None:
        """Say how many wait."""
        self._share.wanted = len(self._lanes)
        if not self._lanes:
            self._rate.end(now)

    def _hand_out(self, now: float) -> None:
        lanes = self._lanes
        self._expire(now)
        while lanes:
            limited = self.limit != 0
            if limited and not self._share.take(1, self.places):
                if self._share.wanted:
                    return
                # Whoever gives back from now on says so; who did just before is seen below.
                self._share.wanted = len(lanes)
                if not self._share.take(1, self.places):
                    return
            waiter = lanes.pop(now)
            if waiter is None:
                if limited:
                    self._share.give(1)
                return
            who: Who = waiter.key  # type: ignore[assignment]  # ``ask`` put it there
            entry = self._entries[who]
            entry.turned, entry.reserved = True, limited
            self._rate.turn(now, self.places, entry.since, entry.turns)
            self._overtaking.over(waiter.level, entry.ahead, self._rate.total - entry.turns)
            self._tell(who, entry, now)

    def tick(self, now: float) -> None:
        """Look after those who are too late, dead or silent."""
        self._expire(now)
        for who, entry in list(self._entries.items()):
            if self._life_of(who[0]) != entry.life:
                self._drop(who, entry)
            elif entry.turned and now - entry.told_at > TOLD_AGAIN_S:
                self._tell(who, entry, now)
        self.pump(now)

    def _expire(self, now: float) -> None:
        for waiter in self._lanes.expire(now):
            who: Who = waiter.key  # type: ignore[assignment]  # ``ask`` put it there
            entry = self._entries.pop(who)
            self._rate.lags(now, self.places, entry.since, entry.turns)
            came = self._rate.total - entry.turns
            if came >= entry.ahead:  # else it is the backend that was late
                self._overtaking.over(waiter.level, entry.ahead, came + 1)
            self._crier.refuse(who, self._wait_s(waiter, self._ahead(waiter), now), early=False)

    def _wait_s(self, waiter: Waiter, ahead: float, now: float) -> float:
        """How long one that comes now will likely wait; 0: nobody can tell."""
        passed = self._overtaking.passed(waiter.level)
        return self._rate.wait_s(ahead * passed, now, self.places)

    def _too_far(self, waiter: Waiter, ahead: float, now: float) -> bool:
        """Whether it would be too late, were the places to come as late as they lately did.

        Who is among the next is not asked to wait less than it would: when all places are late, a
        tenant that sends a call now and then must not be refused for it, and no place stay empty.
        """
        places = self.places
        if ahead <= max(places // NEXT_PART, 1):
            longest_s = self._rate.wait_s(ahead, now, places)
        else:
            passed = self._overtaking.passed(waiter.level)
            longest_s = self._rate.longest_s(ahead * passed, now, places)
        return now + longest_s > waiter.deadline

    def _ahead(self, waiter: Waiter) -> float:
        """Places until its own, that one included."""
        return self._lanes.before(waiter.level, waiter.tenant, waiter.weight) + 1

    def _tell(self, who: Who, entry: _Entry, now: float) -> None:
        heard = self._crier.turn(who, self._backlog_s(now))
        entry.told_at = now if heard else UNHEARD

    def _backlog_s(self, now: float) -> float:
        return self._rate.wait_s(len(self._lanes), now, self.places)

    def _drop(self, who: Who, entry: _Entry) -> None:
        del self._entries[who]
        if entry.turned:
            if entry.reserved:
                self._share.give(1)
        else:
            self._lanes.remove(entry.waiter)
