"""One queue per backend for the whole host, in front of the calls that it answers at a time.

A try of a backend that has ``max_concurrent`` takes one of that many places, which all workers
share, and holds it until the reply is complete.  How many these are the host may find out
(``pipeline.place_limit``): by how fast it answers (``"auto"``), or, unless told otherwise, once it
answers that it has too many calls; until then there is no limit.
Without a free place it waits in the backend's queue (``pipeline.places``): by priority, fair
between tenants, by deadline (``pipeline.lanes``).
Places are taken per try and not per call, so a call holds none while it waits for its next try,
and each backend that a route picks counts for itself; a retried call keeps its age.

A call is shed

- when the waiting room in front of the inference stage is full,
- at once, when it would wait past its deadline, past the time its SDK waits for a byte, or longer
  than ``max_wait_s``, as far as the rate tells at which places became free lately,
- when that moment comes while it waits; if it is the call's own deadline, it is expired.

Invariants: each place taken is given back once, however the try ends; a call that waits holds one
place of the waiting room, and leaves it in the same turn of the loop in which its client left.
Known weakness: the backend is chosen before the call waits, so it waits for that one although
another of its route may have a place sooner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from tpo_mp.errors import DeadlineExceeded, Shed, TpoError
from tpo_mp.pipeline.lanes import Waiter
from tpo_mp.pipeline.place_math import LimitBounds
from tpo_mp.pipeline.placed import Passing, leaving, through
from tpo_mp.pipeline.places import AUTO, OVERLOAD, Door, PlaceTicket, desk_of
from tpo_mp.pipeline.promise import Done, Promise, run
from tpo_mp.ports import BackendConfig, Counter, Env, Feature, Histogram, Proceed
from tpo_mp.types import Call, Phase, Priority, Reply

WAITS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FOUND_OUT: Final[dict[str, int]] = {"auto": AUTO, "overload": OVERLOAD}
LEAST_PAUSE_S: Final = 0.05
MOST_PAUSE_S: Final = 60.0
"""Longer ones make SDKs give up, or come back by a clock of their own."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How calls wait for a backend whose ``max_concurrent`` places are taken."""

    max_wait_s: Annotated[float, Meta(gt=0, le=86_400,
        description="Longest a call waits for a place; one that would wait longer is "
        "refused at once.")] = 30.0  # fmt: skip
    aging_s: Annotated[float, Meta(gt=0, le=3_600,
        description="A call that waited this long for each class it could still rise is among "
        "those that get every fourth place, the longest overdue first.")] = 5.0  # fmt: skip
    weights: Annotated[
        dict[str, Annotated[float, Meta(ge=0.001, le=1_000)]],
        Meta(max_length=4_096,
             description="Shares of tenants inside a class, where they are not all alike [1]."),
    ] = {}  # fmt: skip
    highest: Annotated[
        dict[str, Literal["high", "normal", "low"]],
        Meta(max_length=4_096,
             description="Highest priority of tenants, where any call may have any; what such a "
             "tenant marks higher waits as that."),
    ] = {}  # fmt: skip
    auto_start: Annotated[int, Meta(ge=1, le=100_000,
        description="Places at first of a backend with `max_concurrent` auto.")] = 16  # fmt: skip
    auto_least: Annotated[int, Meta(ge=1, le=100_000,
        description="Fewest places it is given, however slow it is.")] = 1  # fmt: skip
    auto_most: Annotated[int, Meta(ge=1, le=100_000,
        description="Most places it is given, however fast it is.")] = 1_000  # fmt: skip
    auto_tolerance: Annotated[float, Meta(ge=1.1, le=10,
        description="How many times as slow as at its best it may become before it gets fewer "
        "places.")] = 1.5  # fmt: skip

    def __post_init__(self) -> None:
        """Bounds that cross."""
        if self.auto_least > self.auto_most:
            raise ValueError(
                f"auto_least = {self.auto_least} is more than auto_most = {self.auto_most}"
            )


class Admission:
    """Lets a try through when there is a place at its backend."""

    phase: ClassVar[Phase] = Phase.ATTEMPT

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._env = env
        self._desk = desk_of(env)
        self._clock = env.clock
        self._doors: dict[str, tuple[Door, int, Done, _Told]] = {}
        self._highest = {who: Priority[name.upper()] for who, name in config.highest.items()}

    def meet(self, entries: Sequence[BackendConfig]) -> None:
        """Learn the limits."""
        c = self._config
        start = min(max(c.auto_start, c.auto_least), c.auto_most)
        bounds = LimitBounds(start, c.auto_least, c.auto_most, c.auto_tolerance)
        for entry in entries:
            told, door = _Told(entry.name, self._env), self._desk.door(entry.name)
            most = entry.max_concurrent
            limit = most if isinstance(most, int) else _FOUND_OUT[most]
            door.meant(limit, self._env, bounds)
            self._doors[entry.name] = (door, limit, leaving(door), told)
        self._desk.report()

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Go on at once, or when it is the call's turn."""
        known = self._doors.get(call.backend)
        if known is None:
            return proceed(call)
        door, limit, gone, told = known
        if door.enter(door.now if limit == OVERLOAD else limit):
            return through(door, call, proceed, self._clock, gone)
        return _Waiting(self, door, told, call, proceed).out

    def facts(self, call: Call, now: float) -> Waiter:
        """What the queue must know of a call."""
        longest = now + self._config.max_wait_s
        return Waiter(
            None,
            level=min(call.priority, self._highest.get(call.tenant, Priority.CRITICAL)),
            tenant=call.tenant,
            weight=self._config.weights.get(call.tenant, 1.0),
            arrived_at=call.started_at,
            deadline=min(call.deadline, longest, call.started_at + call.patience_s),
        )

    @property
    def env(self) -> Env:
        """The world."""
        return self._env

    def ask(self, waiting: _Waiting, facts: Waiter) -> PlaceTicket:
        """Queue a call."""
        return self._desk.wait(
            waiting.door, facts, self._config.aging_s, waiting.turn, waiting.refused
        )


class _Told:
    """What is told of one backend's queue."""

    def __init__(self, backend: str, env: Env) -> None:
        self.waits: Histogram = env.metrics.histogram(
            "tpo_queue_wait_seconds",
            "Waits for a place at a backend, of calls that got one.",
            WAITS_S,
            backend=backend,
        )
        self._env = env
        self._backend = backend
        self._left: dict[str, Counter] = {}

    def left(self, why: str) -> None:
        """A call left the queue without a place."""
        counter = self._left.get(why)
        if counter is None:
            counter = self._left[why] = self._env.metrics.counter(
                "tpo_queue_left_total",
                "Calls that got no place at a backend, by why.",
                backend=self._backend,
                why=why,
            )
        counter.inc()


class _Waiting:
    """A try without a place yet; ``out`` is its outcome."""

    __slots__ = ("_call", "_clock", "_done", "_proceed", "_room", "_since", "_ticket", "_told",
                 "_waits", "door", "out")  # fmt: skip

    def __init__(
        self, stage: Admission, door: Door, told: _Told, call: Call, proceed: Proceed
    ) -> None:
        """Queue it; raises ``Shed`` when the waiting room is full."""
        env = stage.env
        self._clock = env.clock
        self._since = env.clock()
        self._call = call
        self._proceed = proceed
        self._told = told
        self._room = env.rooms["inference"]
        self.door = door
        self.out: Promise[Reply] = Promise(self._left)
        self._done = Passing(self.out)
        self._ticket: PlaceTicket | None = None
        if not self._room.enter():
            told.left("full")
            raise Shed(
                f"backend {door.name!r} has too many calls waiting",
                reason="backpressure",
                retry_after_s=_pause_s(door.wait_s),
            )
        self._waits = True
        self._ticket = stage.ask(self, stage.facts(call, self._since))

    def turn(self) -> None:
        """A place is held for it: go on."""
        waited_s = self._leave_room()
        self._told.waits.observe(waited_s)
        out = self.out
        out.cancel_with = None
        try:
            trying = through(self.door, self._call, self._proceed, self._clock)
        except Exception as e:  # noqa: BLE001 - becomes the call's error, as a rejected one does
            out.reject(e)
            return
        line = _timing(waited_s)

        def answered(reply: Reply | None, error: BaseException | None) -> None:
            if reply is not None:
                reply.headers += line
            self._done(reply, error)

        cancel = run(trying, answered)
        if not out.done:
            out.cancel_with = cancel

    def refused(self, wait_s: float, early: bool) -> None:
        """It gets no place in time."""
        line = _timing(self._leave_room())
        name = self.door.name
        self._told.left("early" if early else "late")
        error: TpoError
        if self._call.deadline <= self._clock():
            error = DeadlineExceeded(
                f"the deadline passed while the call waited for backend {name!r}",
                reason="deadline_in_queue",
            )
        elif early:
            error = Shed(
                f"backend {name!r} is busy: a place is about {wait_s:.1f} s away, which is more "
                "than the call would wait",
                reason="queue_too_long",
                retry_after_s=_pause_s(wait_s),
            )
        else:
            error = Shed(
                f"backend {name!r} had no place in the time that the call would wait",
                reason="queue_timeout",
                retry_after_s=_pause_s(wait_s),
            )
        error.lines = line
        self.out.reject(error)

    def _left(self) -> None:
        """The client is gone, or the call's time."""
        if self._waits:
            self._leave_room()
            self._told.left("expired" if self._call.deadline <= self._clock() else "gone")
            if self._ticket is not None:
                self._ticket.cancel()

    def _leave_room(self) -> float:
        """It waits no more; answers how long it did."""
        self._waits = False
        self._room.leave()
        return self._clock() - self._since


def _timing(waited_s: float) -> bytes:
    return b"x-tpo-queue-ms: %.1f\r\n" % (waited_s * 1e3)


def _pause_s(wait_s: float) -> float:
    """When coming back is worth it, if one place is ``wait_s`` away (0: nobody knows)."""
    return min(max(wait_s or 1.0, LEAST_PAUSE_S), MOST_PAUSE_S)


FEATURE = Feature(Config, Admission)
