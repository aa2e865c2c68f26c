"""One engine per model on this host, whichever worker a request came to.

An engine lives in one worker, its *home*: the seat that the host's slot map names for it.  Other
workers keep their clients, send what the engine must know of a request, and hear how far it is.

::

    client's worker                              home
    Submit  sizes, block names, priority    →    waits, runs
                                            ←    Told     (request, tokens so far, cached, over) …
                                            ←    Refused  the queue is full
    Leave   the client is gone              →    its blocks are free

Counts are whole, not changes, so a message more or less does no harm.  A submission that is not
answered is sent again, and a home that has it already answers with how far it is.

The ranks of a data-parallel engine share a home, which sends a request to the one with least to do
unless it names one.

When a home dies, its requests are submitted to the next home, with the tokens that are still to
come; the new engine begins empty.  Clients see a pause, as after a preemption.  When a client's
worker dies, its requests leave within 50 ms.

Invariants: at any time a request is in one engine; capacity does not depend on how many workers
there are; what waits for a full ring is one row per request.
Known weakness: while a seat is being replaced, workers may for a moment disagree on the home, and
the host then has two engines of the model, the old one only finishing what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from random import randrange
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

import msgspec

from tpo_mp.ports import Env, Timers

from .engine_metrics import AWAKE, PAUSED, EngineMetrics, Names
from .engine_prompt import NAME_BYTES
from .engine_room import EngineRoom, Guest
from .engine_steps import EngineFull, EngineRequest, EngineShape
from .live import Sleep, read_state
from .timer import NEVER, MicroTimer

TICK_S: Final = 0.05
UNANSWERED_S: Final = 0.25
"""After this long a submission nobody answered is sent again."""
SILENT_S: Final = 5.0
"""After this long without news it is asked for."""
GLANCE_S: Final = 1.0
"""Engines at rest look this often whether they were told to sleep."""
GIVEN_UP_S: Final = 10.0
"""After this long a submission nobody ever answered is refused."""
MOST_ROOMS: Final = 64
OTHER: Final = "other"
"""The engine of all models beyond ``MOST_ROOMS``."""
ROWS: Final = 256
_SPARE: Final = 256
"""Bytes of a submission besides names of blocks and models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """An engine as configured."""

    shape: EngineShape
    speedup: float = 1.0
    names: Names = "new"
    ranks: int = 1


class Submission(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """What an engine must know of a request; ``blocks`` are the names of its blocks, joined."""

    number: int
    engine: str
    model: str
    prompt_tokens: int
    answer_tokens: int
    priority: int
    arrived_at: float
    factor: float = 1.0
    reason: str = "stop"
    choices: int = 1
    limit: int = 0
    blocks: bytes = b""
    lora: str = ""
    rank: int = -1
    """Of the engine; -1: whichever has least to do."""


class Leave(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """The client is gone."""

    number: int


class TokensTold(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Rows of (number, tokens so far, cached tokens or -1, over)."""

    rows: list[tuple[int, int, int, bool]]


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The queue is full."""

    number: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Submission | Leave | TokensTold | Refused).decode
Row: TypeAlias = tuple[int, int, bool]
Tell: TypeAlias = Callable[[int, int, bool], None]


class Ticket:
    """A request on its client's side; ``tell(more tokens, cached, over)``.

    One that is over with fewer tokens than were wanted was broken off.
    """

    __slots__ = (
        "_base",
        "answered",
        "asked_at",
        "got",
        "guest",
        "heard_at",
        "life",
        "over",
        "placed_at",
        "refuse",
        "room",
        "seat",
        "sent",
        "tell",
        "wanted",
    )  # fmt: skip

    def __init__(
        self,
        wanted: Submission,
        tell: Tell,
        refuse: Callable[[], None],
    ) -> None:
        self.wanted = wanted
        self.tell = tell
        self.refuse = refuse
        self.got = 0
        self.over = False
        self.seat = -1
        self.life = (0, 0)
        self.sent = wanted
        self.answered = False
        self.asked_at = self.heard_at = self.placed_at = 0.0
        self.guest: Guest | None = None
        self.room: EngineRoom | None = None
        self._base = 0

    def place(self, number: int) -> Submission:
        """What is still to be done, as a submission of its own."""
        self._base = self.got
        wanted = self.wanted
        self.sent = msgspec.structs.replace(
            wanted,
            number=number,
            prompt_tokens=wanted.prompt_tokens + self.got,
            answer_tokens=wanted.answer_tokens - self.got,
        )
        self.answered = False
        return self.sent

    def progress(self, tokens: int, cached: int, over: bool) -> None:
        """Hear how far it is."""
        self.over = self.over or over
        more = self._base + tokens - self.got
        if more > 0 or over:
            self.got += max(more, 0)
            self.tell(max(more, 0), cached, over)


class _Stay:
    """A request of another worker in an engine here."""

    __slots__ = ("guest", "life", "room")

    def __init__(self, room: EngineRoom, life: tuple[int, int], guest: Guest) -> None:
        self.room = room
        self.life = life
        self.guest = guest


class EngineHost:
    """The engines of one configuration, seen from one worker; an entry of the worker's timer."""

    def __init__(
        self, topic: str, setups: Mapping[str, EngineSetup], env: Env, timer: MicroTimer
    ) -> None:
        self.topic = topic
        self.stopped = False
        self.users = 0
        self._setups = setups
        self._env = env
        self._timer = timer
        self._peers = env.peers
        self._numbers = count(randrange(1 << 30))  # noqa: S311 - not those of who was here before
        self._rooms: dict[tuple[str, str, int], EngineRoom] = {}
        self._turn = count()
        self._version, state = read_state(env.live)
        self._sleep = state.sleep
        self._dropped, self._aborted = state.caches_dropped, state.calls_aborted
        self._away: dict[int, Ticket] = {}
        self._stays: dict[tuple[int, int], _Stay] = {}
        self._news: dict[int, dict[int, Row]] = {}
        self._leaves: dict[tuple[int, int], tuple[int, int]] = {}
        self._ticking = False
        self._peers.listen(topic, self._take)

    def rooms(self) -> Collection[EngineRoom]:
        """The engines that live here."""
        return self._rooms.values()

    # -- the client's side ------------------------------------------------------------------------

    def enter(
        self,
        wanted: Submission,
        tell: Tell,
        refuse: Callable[[], None],
    ) -> Ticket:
        """Submit a request; ``refuse`` may be called before this returns, ``tell`` never."""
        ticket = Ticket(wanted, tell, refuse)
        self._place(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The client wants no more of it, or has all."""
        if ticket.guest is not None and ticket.room is not None:
            ticket.room.cancel(ticket.guest)
        elif self._away.pop(ticket.sent.number, None) is not None and not ticket.over:
            self._leaves[ticket.seat, ticket.sent.number] = ticket.life
            self._say_leaves()
            self._watch()

    def close(self) -> None:
        """One user less; the last one's requests still run to their end."""
        self.users -= 1
        self._watch()

    def _place(self, ticket: Ticket) -> None:
        wanted = ticket.wanted
        seat = self._peers.home(f"{self.topic}:{wanted.engine}:{wanted.model}")
        told = ticket.place(next(self._numbers) & 0xFFFFFFFF)
        if seat == self._peers.here:
            self._place_here(ticket, told)
            return
        now = self._env.clock()
        ticket.seat, ticket.life = seat, self._peers.life_of(seat)
        ticket.heard_at = ticket.placed_at = now
        self._away[told.number] = ticket
        self._ask(ticket, now)
        self._watch()

    def _place_here(self, ticket: Ticket, told: Submission) -> None:
        room = self._room(told)
        guest = _guest(told, lambda r: ticket.progress(r.generated, r.cached_tokens, r.over))
        ticket.guest, ticket.room = guest, room
        try:
            ticket.room.submit(guest, told.arrived_at)
        except EngineFull:
            ticket.guest = None
            ticket.refuse()

    def _ask(self, ticket: Ticket, now: float) -> None:
        most = self._peers.most - _SPARE - 4 * len(ticket.sent.engine + ticket.sent.model)
        most -= most % NAME_BYTES
        sent = ticket.sent
        if len(sent.blocks) > most:
            sent = msgspec.structs.replace(sent, blocks=sent.blocks[:most])
        ticket.asked_at = now
        self._peers.tell(ticket.seat, self.topic, _encode(sent))

    def _hear(self, seat: int, row: tuple[int, int, int, bool]) -> None:
        number, tokens, cached, over = row
        ticket = self._away.get(number)
        if ticket is None or ticket.seat != seat:
            return
        ticket.answered = True
        ticket.heard_at = self._env.clock()
        if over:
            del self._away[number]
        ticket.progress(tokens, cached, over)

    def _refused(self, seat: int, number: int) -> None:
        ticket = self._away.get(number)
        if ticket is not None and ticket.seat == seat:
            del self._away[number]
            ticket.refuse()

    # -- the engine's side ------------------------------------------------------------------------

    def _take(self, seat: int, message: bytes) -> None:
        told = _decode(message)
        if isinstance(told, TokensTold):
            for row in told.rows:
                self._hear(seat, row)
        elif isinstance(told, Submission):
            self._submitted(seat, told)
        elif isinstance(told, Refused):
            self._refused(seat, told.number)
        else:
            stay = self._stays.pop((seat, told.number), None)
            if stay is not None:
                stay.room.cancel(stay.guest)

    def _submitted(self, seat: int, told: Submission) -> None:
        if told.engine not in self._setups:
            return
        key = (seat, told.number)
        life = self._peers.life_of(seat)
        stay = self._stays.get(key)
        if stay is not None and stay.life == life:
            self._note(key, stay.guest.request)
            self._say_news()
            return
        if stay is not None:
            stay.room.cancel(stay.guest)
        room = self._room(told)
        guest = _guest(told, lambda request: self._note(key, request))
        try:
            room.submit(guest, told.arrived_at)
        except EngineFull:
            self._refuse(key)
            return
        self._stays[key] = _Stay(room, life, guest)
        self._note(key, guest.request)
        self._say_news()
        self._watch()

    def _refuse(self, key: tuple[int, int]) -> None:
        """Refuse a request of another worker; one that does not hear it asks again."""
        seat, number = key
        self._stays.pop(key, None)
        self._peers.tell(seat, self.topic, _encode(Refused(number)))

    def _note(self, key: tuple[int, int], request: EngineRequest) -> None:
        """Keep a row for a request's worker, in the place of an older one."""
        seat, number = key
        self._news.setdefault(seat, {})[number] = (
            request.generated,
            request.cached_tokens,
            request.over,
        )
        if request.over:
            self._stays.pop(key, None)

    def _say_news(self) -> None:
        """Tell all rows that the rings take."""
        for seat, rows in list(self._news.items()):
            while rows:
                some = [
                    (number, *rows[number]) for number, _ in zip(rows, range(ROWS), strict=False)
                ]
                if not self._peers.tell(seat, self.topic, _encode(TokensTold(some))):
                    break
                for number, *_ in some:
                    del rows[number]
            if not rows:
                del self._news[seat]

    def _room(self, told: Submission) -> EngineRoom:
        """The engine that a request is for: of the ranks of its model, the one it names."""
        self._look()
        model, setup = told.model, self._setups[told.engine]
        if (told.engine, model, 0) not in self._rooms:
            if len(self._rooms) >= MOST_ROOMS:
                model = OTHER
            for rank in range(setup.ranks):
                self._make_room(told.engine, model, rank)
        ranks = [self._rooms[told.engine, model, rank] for rank in range(setup.ranks)]
        if 0 <= told.rank < setup.ranks:
            room = ranks[told.rank]
        elif setup.ranks == 1:
            room = ranks[0]
        else:
            first = next(self._turn) % setup.ranks  # of several idle ones, each in its turn
            room = min(ranks[first:] + ranks[:first], key=lambda room: room.load)
        room.factor = told.factor / setup.speedup
        return room

    def _make_room(self, engine: str, model: str, rank: int) -> None:
        if (engine, model, rank) in self._rooms:
            return
        if not self._rooms:
            self._timer.add(self._env.clock() + GLANCE_S, _Glance(self))
        env, setup = self._env, self._setups[engine]
        metrics = EngineMetrics(env.metrics, setup.shape, model, setup.names, str(rank))
        room = EngineRoom(setup.shape, self._timer, env.clock, metrics)
        room.told, room.before = self._say_news, self._look
        _put(room, self._sleep)
        self._rooms[engine, model, rank] = room

    # -- sleep ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Do what the live state says, if it changed: sleep, break off what runs, forget."""
        if self._env.live.version == self._version:
            return
        self._version, state = read_state(self._env.live)
        slept, self._sleep = self._sleep, state.sleep
        dropped, self._dropped = self._dropped, state.caches_dropped
        aborted, self._aborted = self._aborted, state.calls_aborted
        for room in self._rooms.values():
            if aborted != state.calls_aborted:
                room.give_up()
            if dropped != state.caches_dropped:
                room.engine.kv.forget()
            if slept != state.sleep:
                _put(room, state.sleep)
        self._say_news()

    def glance(self) -> float:
        """Look although nothing happens here; how long until the next time."""
        self._look()
        return GLANCE_S if self.users else NEVER

    # -- clock ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._timer.add(self._env.clock() + TICK_S, self)

    def due(self, now: float) -> float:
        """Look after those whose other side is silent or gone."""
        life_of = self._peers.life_of
        for number, ticket in list(self._away.items()):
            if life_of(ticket.seat) != ticket.life:
                del self._away[number]
                self._place(ticket)
            elif not ticket.answered and now - ticket.placed_at > GIVEN_UP_S:
                del self._away[number]
                ticket.refuse()
            elif now - max(ticket.asked_at, ticket.heard_at) > (
                SILENT_S if ticket.answered else UNANSWERED_S
            ):
                self._ask(ticket, now)
        for key, stay in list(self._stays.items()):
            if life_of(key[0]) != stay.life:
                del self._stays[key]
                stay.room.cancel(stay.guest)
                self._news.pop(key[0], None)
        self._say_news()
        self._say_leaves()
        if self._away or self._stays or self._news or self._leaves:
            return now + TICK_S
        self._ticking = False
        if not self.users:
            self._end()
        return NEVER

    def _say_leaves(self) -> None:
        for (seat, number), life in list(self._leaves.items()):
            if self._peers.life_of(seat) != life or self._peers.tell(
                seat, self.topic, _encode(Leave(number))
            ):
                del self._leaves[seat, number]

    def _end(self) -> None:
        """No user, nobody inside: the next of this name begins with empty engines."""
        hosts = _hosts.get(self._env.timers, {})
        if hosts.get(self.topic) is self:
            del hosts[self.topic]
            self._peers.listen(self.topic, None)


class _Glance:
    """An entry of the timer that looks at the live state for engines at rest."""

    stopped = False

    def __init__(self, host: EngineHost) -> None:
        self._host = host

    def due(self, now: float) -> float:
        """Look; when to look again."""
        return now + self._host.glance()


def _put(room: EngineRoom, sleep: Sleep | None) -> None:
    """Let an engine sleep, or wake it."""
    if sleep is None:
        room.sleep(AWAKE)
        room.thaw()
        return
    room.sleep(sleep.level or PAUSED)
    if sleep.kept:
        room.freeze(emptied=sleep.level > 0)
    else:
        room.hold()


def _guest(told: Submission, tell: Callable[[EngineRequest], None]) -> Guest:
    names = told.blocks
    request = EngineRequest(
        told.prompt_tokens,
        told.answer_tokens,
        names=[names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)],
        priority=told.priority,
        lora=told.lora,
    )
    return Guest(request, tell, told.reason, told.choices, told.limit)


def host_of(
    env: Env, topic: str, setups: Mapping[str, EngineSetup], timer: MicroTimer
) -> EngineHost:
    """The engines of this name in this worker, made when first asked for; ``close`` it at the end.

    A changed configuration has another topic, and so other engines.
    """
    hosts = _hosts.setdefault(env.timers, {})
    if topic not in hosts:
        hosts[topic] = EngineHost(topic, setups, env, timer)
    hosts[topic].users += 1
    return hosts[topic]


_hosts: Final[WeakKeyDictionary[Timers, dict[str, EngineHost]]] = WeakKeyDictionary()
