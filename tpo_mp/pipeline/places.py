"""Places at backends: how many calls one answers at a time, counted for the whole host.

A process takes places in small leases (``shm.shares``) and hands them to its calls without asking
anybody.  When none is left, a call waits in the backend's one queue, which the process keeps that
the host's slot map names for it::

    a call's process                                 the queue's process
    Ask    how urgent, whose, until when      →      waits in the lanes
                                              ←      Turn     a place is held for it
    Kept   it has it, or does not want it     →      the place is not held here any more
                                              ←      Refused  too late, or it would be
    Gone   the caller left                    →      it waits no more
    Freed  a place came back                  →      the next one's turn

A message may be lost: who waits asks again, and a turn is told until it is answered.  When the
queue's process dies, those who wait ask the next one, and keep their place in the order, because
it is by when they came.  Both sides of one process speak the same way, without a ring.

Invariants: a place is held by one process at a time, and for a moment by two while it changes
hands, never by none; what a process does not use it gives back within two turns of the wheel
(100 ms), what becomes free while others wait at once; a call enters and leaves once.
A limit that became lower takes what calls leave, until no more is held than there is.
Known weakness: while a seat is being replaced two processes may keep a queue of the same backend;
places stay exact, only the order between the two queues is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import randrange
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

import msgspec

from tpo_mp.ports import Env, Share
from tpo_mp.shm.plane import NO_SEAT
from tpo_mp.types import NO_DEADLINE

from .lanes import Waiter
from .place_limit import PlaceLimit
from .place_math import MANY, LimitBounds
from .place_queue import PlaceQueue, Who
from .place_report import PlaceReport, share_name

TOPIC: Final = "admission"
TICK_S: Final = 0.05
ASKED_AGAIN_S: Final = 2.0
MOST_AT_ONCE: Final = 32
AUTO: Final = -1
"""The limit of a backend whose places the host finds out itself (``place_limit``)."""
OVERLOAD: Final = -2
"""The same, but there is none until the backend says that it has too many."""
LEASE_PART: Final = 8
"""A lease is at most this part of what is left."""


class AskPlace(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A call wants a place; instants are CLOCK_MONOTONIC, which all processes share."""

    backend: str
    number: int
    limit: int
    level: int
    tenant: str
    weight: float
    arrived_at: float
    deadline: float
    aging_s: float


class PlaceTurn(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """It is its turn; ``wait_s`` is how long the queue is."""

    backend: str
    number: int
    wait_s: float


class PlaceRefused(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """It will not get one in time (``early``), or did not."""

    backend: str
    number: int
    wait_s: float
    early: bool


class PlaceKept(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The turn was heard."""

    backend: str
    number: int


class PlaceGone(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """The call waits no more."""

    backend: str
    number: int


class PlaceFreed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """A place came back."""

    backend: str


_Message: TypeAlias = AskPlace | PlaceTurn | PlaceRefused | PlaceKept | PlaceGone | PlaceFreed
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Message).decode


class PlaceTicket:
    """A call that waits; ``turn()`` or ``refuse(wait_s, early)`` is called once, or neither."""

    __slots__ = ("asked_at", "door", "life", "number", "refuse", "seat", "turn", "wanted")

    def __init__(
        self,
        door: Door,
        wanted: AskPlace,
        turn: Callable[[], None],
        refuse: Callable[[float, bool], None],
    ) -> None:
        self.door = door
        self.wanted = wanted
        self.number = wanted.number
        self.turn = turn
        self.refuse = refuse
        self.seat = -1
        self.life = (0, 0)
        self.asked_at = 0.0

    def cancel(self) -> None:
        """The call waits no more."""
        self.door.desk.left(self)


class Door:
    """One backend, seen from one process: what its calls hold and what is leased for more."""

    __slots__ = (
        "__weakref__",
        "_excess",
        "_idle",
        "auto",
        "desk",
        "leased",
        "limit",
        "name",
        "now",
        "share",
        "told",
        "used",
        "wait_s",
    )  # fmt: skip

    def __init__(self, desk: PlaceDesk, name: str, share: Share) -> None:
        self.desk = desk
        self.name = name
        self.share = share
        self.limit = 0
        self.used = 0
        self.leased = 0
        self.wait_s = 0.0
        """How long the queue was when last heard of."""
        self.auto: PlaceLimit | None = None
        """Measures where the limit is ``AUTO``."""
        self.told = 0
        self.now = 0
        """The limit of a call that comes with ``OVERLOAD``: none, or ``AUTO``."""
        self._idle = False
        self._excess = 0

    @property
    def places(self) -> int:
        """How many the host has now; 0: there is no limit."""
        return self.limit if self.limit >= 0 else self.share.limit or MANY

    def meant(self, limit: int, env: Env, bounds: LimitBounds) -> None:
        """Learn the limit that calls will come with; below 0: find it out, inside these bounds."""
        self.told = limit
        self.auto = None
        if limit < 0:
            bounds = bounds._replace(waits=limit == OVERLOAD)
            self.auto = PlaceLimit(env, self.name, self.share, bounds, self.look)
            self.look()

    def enter(self, limit: int) -> bool:
        """Take a place without waiting, if there is one; ``limit`` is the host's, 0 for none."""
        if limit != self.limit:
            self._change(limit)
        if limit:
            if self.used >= self.leased and not self._lease():
                if self.auto is not None:
                    self.auto.full()
                return False
            self._idle = False
        self.used += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.used -= 1
        if self.limit:
            if self.share.wanted or self._excess > 0:
                self._give_back()
            else:
                self.desk.watch()

    def take_turn(self) -> None:
        """Take a place that the queue holds for a call here."""
        if self.limit:
            self.share.add(1)
            self.leased += 1
        self.used += 1

    def undo_turn(self) -> None:
        """The queue was gone, and the place with it."""
        self.used -= 1
        if self.limit:
            self.share.give(1)
            self.leased -= 1

    def tick(self) -> bool:
        """Give back what was not used since the last tick; answers whether more is leased."""
        if self.leased > self.used:
            if self._idle or self.share.wanted:
                self._give_back()
            self._idle = True
        return self.leased > self.used

    def heed(self) -> None:
        """Look at what another process may have found out, also if no call comes."""
        if self.told == OVERLOAD:
            self.look()

    def look(self) -> None:
        """There may be another limit, or none any more."""
        if self.told == OVERLOAD and self.auto is not None:
            self.now = AUTO if self.share.limit else 0
            self.auto.idle = not self.now
            if self.limit != self.now:
                self._change(self.now)
        self.shrink()

    def shrink(self) -> None:
        """Give back, now and as calls leave, what is held beyond the limit."""
        self._excess = self.share.total() - self.places if self.limit else 0
        if self._excess > 0:
            self._give_back()

    def _lease(self) -> bool:
        share, limit = self.share, self.places
        if share.wanted:  # they came first
            return False
        wanted = min(max((limit - share.total()) // LEASE_PART, 1), MOST_AT_ONCE)
        taken = share.take(wanted, limit)
        self.leased += taken
        if taken > 1:
            self.desk.watch()  # gives back what is not used
        return taken > 0

    def _give_back(self) -> None:
        spare = self.leased - self.used
        if spare > 0:
            self.leased -= spare
            self._excess -= spare
            self.share.give(spare)
            if self.share.wanted:
                self.desk.freed(self)

    def _change(self, limit: int) -> None:
        """Count from now on, or no more, or to another limit."""
        if not self.limit:
            self.share.add(self.used)
            self.leased = self.used
        elif not limit:
            self.share.give(self.leased)
            self.leased = 0
        self.limit = limit
        self.shrink()
        self.desk.changed(self)


class PlaceDesk:
    """All doors of one process, the queues that live here, and the messages between them."""

    def __init__(self, env: Env) -> None:
        self._clock = env.clock
        self._shares = env.shares
        self._timers = env.timers
        self._peers = env.peers
        self._doors: WeakValueDictionary[str, Door] = WeakValueDictionary()
        """Those that a configuration, or a call of an older one, still has."""
        self._queues: dict[str, PlaceQueue] = {}
        self._tickets: dict[int, PlaceTicket] = {}
        self._unsaid: dict[tuple[int, _Message], tuple[int, int]] = {}
        self._numbers = count(randrange(1 << 30))  # noqa: S311 - not those of who was here before
        self._watching = False
        self.deadline = NO_DEADLINE
        self.filed_at = 0.0
        self._report = PlaceReport(
            env, self._doors, lambda name: self._home(name) == self._peers.here
        )
        self._peers.listen(TOPIC, self._take)

    def door(self, name: str) -> Door:
        """The door of a backend."""
        door = self._doors.get(name)
        if door is None:
            for gone in [n for n, q in self._queues.items() if n not in self._doors and not q.busy]:
                del self._queues[gone]
            door = self._doors[name] = Door(self, name, self._shares.of(share_name(name)))
        return door

    def report(self) -> None:
        """Tell of all doors from now on."""
        self._report.begin()

    # -- a call's side ----------------------------------------------------------------------------

    def wait(
        self,
        door: Door,
        facts: Waiter,
        aging_s: float,
        turn: Callable[[], None],
        refuse: Callable[[float, bool], None],
    ) -> PlaceTicket:
        """Queue for a place; ``turn`` or ``refuse`` may be called before this returns."""
        wanted = AskPlace(
            door.name, next(self._numbers) & 0xFFFFFFFF, door.limit, facts.level, facts.tenant,
            facts.weight, facts.arrived_at, facts.deadline, aging_s,
        )  # fmt: skip
        ticket = PlaceTicket(door, wanted, turn, refuse)
        self._place(ticket)
        return ticket

    def left(self, ticket: PlaceTicket) -> None:
        """A call waits no more."""
        if self._tickets.pop(ticket.number, None) is not None:
            self._say(ticket.seat, PlaceGone(ticket.door.name, ticket.number), surely=True)

    def freed(self, door: Door) -> None:
        """A place came back while others wait: their queue should know at once."""
        self._say(self._home(door.name), PlaceFreed(door.name))

    def changed(self, door: Door) -> None:
        """There is another limit: the queue learns it from who asks."""
        now = self._clock()
        for ticket in [t for t in self._tickets.values() if t.door is door]:
            ticket.wanted = msgspec.structs.replace(ticket.wanted, limit=door.limit)
            self._ask(ticket, now)

    def _place(self, ticket: PlaceTicket) -> None:
        seat = self._home(ticket.door.name)
        ticket.seat, ticket.life = seat, self._peers.life_of(seat)
        self._tickets[ticket.number] = ticket
        self._ask(ticket, self._clock())
        self.watch()

    def _ask(self, ticket: PlaceTicket, now: float) -> None:
        ticket.asked_at = now
        self._say(ticket.seat, ticket.wanted)

    def _turn(self, seat: int, told: PlaceTurn) -> None:
        ticket = self._tickets.get(told.number)
        if ticket is None or ticket.seat != seat:
            self._say(seat, PlaceKept(told.backend, told.number), surely=True)
            return
        door = ticket.door
        door.wait_s = told.wait_s
        door.take_turn()
        if self._peers.life_of(seat) != ticket.life and self._too_many(door):
            # Who held the place died before it was here, and another may have taken it.
            door.undo_turn()
            self._place(ticket)
            return
        del self._tickets[ticket.number]
        self._say(seat, PlaceKept(told.backend, told.number), surely=True)
        ticket.turn()

    def _too_many(self, door: Door) -> bool:
        return bool(door.limit) and door.share.total() > door.places

    def _refused(self, seat: int, told: PlaceRefused) -> None:
        ticket = self._tickets.get(told.number)
        if ticket is not None and ticket.seat == seat:
            del self._tickets[told.number]
            ticket.door.wait_s = told.wait_s
            ticket.refuse(told.wait_s, told.early)

    # -- a queue's side ---------------------------------------------------------------------------

    def turn(self, backend: str, who: Who, wait_s: float) -> bool:
        """Tell a call that it is its turn."""
        return self._say(who[0], PlaceTurn(backend, who[1], wait_s))

    def refuse(self, backend: str, who: Who, wait_s: float, *, early: bool) -> bool:
        """Tell a call that it gets no place in time."""
        return self._say(who[0], PlaceRefused(backend, who[1], wait_s, early), surely=True)

    def _queue(self, name: str) -> PlaceQueue:
        queue = self._queues.get(name)
        if queue is None:
            share, life_of = self._shares.of(share_name(name)), self._peers.life_of
            queue = self._queues[name] = PlaceQueue(share, _QueueCrier(self, name), life_of)
        return queue

    def _asked(self, seat: int, told: AskPlace) -> None:
        who = (seat, told.number)
        waiter = Waiter(
            who,
            level=told.level,
            tenant=told.tenant,
            weight=told.weight,
            arrived_at=told.arrived_at,
            deadline=told.deadline,
            aging_s=told.aging_s,
        )
        self._queue(told.backend).ask(who, waiter, told.limit, self._clock())
        self.watch()

    # -- messages ---------------------------------------------------------------------------------

    def _home(self, name: str) -> int:
        """Who keeps the queue: the seat that the host names, or this one while that is empty."""
        seat = self._peers.home(f"{TOPIC}:{name}")
        return seat if seat != NO_SEAT and self._peers.life_of(seat)[1] else self._peers.here

    def _say(self, seat: int, message: _Message, *, surely: bool = False) -> bool:
        """Say it; ``surely``: what a full ring refuses is said at the next tick."""
        if seat == self._peers.here:
            self._hear(seat, message)
            return True
        said = self._peers.tell(seat, TOPIC, _encode(message))
        if surely and not said:
            self._unsaid[seat, message] = self._peers.life_of(seat)
            self.watch()
        return said

    def _take(self, seat: int, message: bytes) -> None:
        self._hear(seat, _decode(message))

    def _hear(self, seat: int, told: _Message) -> None:
        if isinstance(told, AskPlace):
            self._asked(seat, told)
        elif isinstance(told, PlaceTurn):
            self._turn(seat, told)
        elif isinstance(told, PlaceKept):
            self._queue(told.backend).kept((seat, told.number), self._clock())
        elif isinstance(told, PlaceFreed):
            self._queue(told.backend).pump(self._clock())
        elif isinstance(told, PlaceGone):
            self._queue(told.backend).gone((seat, told.number), self._clock())
        else:
            self._refused(seat, told)

    # -- clock ------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Tick from now on."""
        if not self._watching:
            self._watching = True
            now = self._clock()
            self.deadline = now + TICK_S
            self._timers.add(self, now)

    def expire(self) -> None:
        """One tick: look after whoever is silent, dead or idle."""
        now, life_of = self._clock(), self._peers.life_of
        self._watching = False
        for (seat, message), life in list(self._unsaid.items()):
            if life_of(seat) != life or self._peers.tell(seat, TOPIC, _encode(message)):
                self._unsaid.pop((seat, message), None)
        for ticket in list(self._tickets.values()):
            if life_of(ticket.seat) != ticket.life:
                self._place(ticket)
            elif now - ticket.asked_at > ASKED_AGAIN_S:
                self._ask(ticket, now)
        for queue in self._queues.values():
            if queue.busy:
                queue.tick(now)
        busy = [door for door in self._doors.values() if door.tick()]
        if busy or self._tickets or self._unsaid or any(q.busy for q in self._queues.values()):
            self.watch()


class _QueueCrier:
    """Speaks for one queue."""

    __slots__ = ("_backend", "_desk")

    def __init__(self, desk: PlaceDesk, backend: str) -> None:
        self._desk = desk
        self._backend = backend

    def turn(self, who: Who, wait_s: float) -> bool:
        return self._desk.turn(self._backend, who, wait_s)

    def refuse(self, who: Who, wait_s: float, *, early: bool) -> bool:
        return self._desk.refuse(self._backend, who, wait_s, early=early)


def desk_of(env: Env) -> PlaceDesk:
    """The one desk of this process: calls hold places across changes of the configuration."""
    desk = _desks.get(id(env.timers))
    if desk is None:
        desk = _desks[id(env.timers)] = PlaceDesk(env)
    return desk


_desks: Final[WeakValueDictionary[int, PlaceDesk]] = WeakValueDictionary()
"""By what each holds, which is therefore there as long as it is."""
