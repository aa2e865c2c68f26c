"""Leaves a failing backend alone: circuits by backend, model and fault, one truth per host.

A target (a backend asked for a model) has three circuits and a bench, which are rows of the ledger
(``pipeline.breaker_rows``): all workers see one opening and share one probe, and the state outlives
any of them.  ``pipeline.attribution`` says whose fault a failed try is; it counts in the circuit
of that fault only, and what is the client's counts nowhere.  ``pipeline.circuit`` has the states
and their changes.  The bench refuses nobody: a backend that said when to come back is left out by
the routes that have another.

Invariants: while all is well a call costs two looks (``Watch.peek``) and no lock; one worker of the
host at a time has a circuit's permit to probe; a permit comes back when its call ends, however it
does, and is free again when its worker is dead; an outcome of an older generation changes nothing.
A reply that breaks after its first byte is a failure.
Known weakness: a stream's outcome is known at its end only, so a probe that is one long stream
keeps the permit as long (at most ``permit_s``).  Models that clients make up under a glob share
the places of the ledger's crowd; at its cap the state of the one not changed for longest is lost.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from msgspec import Meta, Struct

from tpo_mp.errors import CircuitOpen, TpoError
from tpo_mp.pipeline.attribution import CALLER_LIMITED, Blame, blame
from tpo_mp.pipeline.breaker_rows import BreakerRow, BreakerRows, KnownTargets
from tpo_mp.pipeline.circuit import (
    MAX_FAILURES,
    MAX_PROBES,
    Circuit,
    benched,
    failed,
    generation_of,
    given_back,
    owner_number,
    probe_failed,
    probe_passed,
    rules_of,
    seat_of,
    succeeded,
    taken,
    unpack,
)
from tpo_mp.pipeline.endings import when_over
from tpo_mp.pipeline.promise import Done, Promise, run
from tpo_mp.ports import BackendConfig, Cells, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply

BENCH: Final = 3
"""The place of the bench among a target's rows; the circuits come before it."""
MAX_BENCH_S: Final = 300.0
"""A longer pause is not believed."""
PROBED_SOON_S: Final = 1.0
"""When to come back while somebody probes."""
_MAX_LANES: Final = 4096

_Seen: TypeAlias = tuple[Cells, ...]
_Permits: TypeAlias = tuple[tuple[int, int], ...]
"""Circuits that a call probes: which of them, and the permit's generation."""
_NO_PERMITS: Final[_Permits] = ()


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a backend is left alone, and how it comes back."""

    threshold: Annotated[
        int, Meta(ge=1, le=MAX_FAILURES, description="Failures in a row that open it.")
    ] = 5
    open_s: Annotated[
        float,
        Meta(gt=0, le=86_400,
             description="Seconds until the first probe; doubled, at most to 64 times as long, "
             "with each probe that fails."),
    ] = 60.0  # fmt: skip
    probes: Annotated[
        int, Meta(ge=1, le=MAX_PROBES, description="Probes of one trial, one at a time.")
    ] = 2
    success_rate: Annotated[
        float, Meta(gt=0, le=1, description="Share of a trial's probes that must pass to close it.")
    ] = 0.8
    permit_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Seconds after which another may probe though one has "
             "not ended."),
    ] = 120.0  # fmt: skip
    panic_share: Annotated[
        float,
        Meta(ge=0, le=1, description="When more than this share of a route's backends are open, "
             "but not all, all of them are asked, so that the last ones do not drown; 0: never."),
    ] = 0.0  # fmt: skip


class _Lane:
    """A target as this process knows it; ``calm`` is the look at which all was well.

    ``told`` is what hears of tries that began then.
    """

    __slots__ = ("calm", "peek", "places", "successes", "told", "watch")

    def __init__(self, places: tuple[BreakerRow, ...], rows: BreakerRows) -> None:
        self.places = places
        self.watch = rows.watch(places)
        self.peek = self.watch.peek
        self.calm: _Seen | None = None
        self.told: Done
        self.successes = rows.successes(places[BENCH].name)


class Breaker:
    """Counts how tries of a backend end, and refuses them while it is known to fail."""

    phase: ClassVar[Phase] = Phase.ATTEMPT

    def __init__(self, config: Config, env: Env) -> None:
        self._rules = rules_of(config)
        self._panic_share = config.panic_share
        self._clock = env.clock
        self._peers = env.peers
        self._rows = BreakerRows(env)
        self._known = KnownTargets()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._rejected = env.metrics.counter(
            "orchestrator_circuit_breaker_requests_rejected_total",
            "Tries that an open breaker refused.",
        )
        self._panicked = env.metrics.counter(
            "tpo_breaker_panics_total",
            "Tries let through an open breaker, because most of the route's were open.",
        )

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Learn which backends there are; see ``ports.Stage``."""
        self._known = KnownTargets(backends)
        self._lanes.clear()
        self._rows.introduce(self._known)

    def blocked(self, call: Call, backend: str) -> bool:
        """Whether a route should rather ask another backend; takes nothing."""
        lane = self._lane(backend, call.model)
        seen = lane.watch.peek()
        if seen is lane.calm:
            return False
        now = self._clock()
        if seen[BENCH][2] > now:
            return True
        return self._shut(seen, now) and not self._panics(call, now)

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Try, or raise ``CircuitOpen``."""
        lane = self._lanes.get((call.backend, call.model)) or self._lane(call.backend, call.model)
        seen = lane.peek()
        if seen is lane.calm:
            told, permits = lane.told, _NO_PERMITS
        else:
            if self._panic_share and self._lets_through(call, seen):
                return proceed(call)  # says nothing of when it is well: that is for probes
            permits = self._enter(lane, seen, call.backend)
            told = partial(self._told, lane, seen, permits)
        try:
            answer = proceed(call)
        except BaseException as error:
            self._over(lane, seen, permits, error)
            raise
        if isinstance(answer, Promise):
            answer.then(told)
            return answer
        out: Promise[Reply] = Promise()

        def done(reply: Reply | None, error: BaseException | None) -> None:
            if out.done and reply is not None and reply.stream is not None:
                reply.stream.cancel()  # given up meanwhile
                self._over(lane, seen, permits, asyncio.CancelledError())
                return
            told(reply, error)
            if reply is not None:
                out.resolve(reply)
            else:
                out.reject(error or RuntimeError("a backend answered nothing"))

        out.cancel_with = run(answer, done)
        return out

    # -- before ---------------------------------------------------------------------------------

    def _lane(self, backend: str, model: str) -> _Lane:
        lane = self._lanes.get((backend, model))
        if lane is None:
            if len(self._lanes) >= _MAX_LANES:
                self._lanes.clear()
            lane = _Lane(self._known.places(backend, model), self._rows)
            self._lanes[backend, model] = lane
        return lane

    def _left_s(self, c: Circuit, now: float) -> float:
        """How long a circuit refuses from now on; 0: it does not."""
        if c.until <= now:
            return 0.0
        if not c.prober:
            return c.until - now
        seat = seat_of(c.prober)
        alive = owner_number(seat, self._peers.life_of(seat)) == c.prober
        return min(PROBED_SOON_S, c.until - now) if alive else 0.0

    def _shut(self, seen: _Seen, now: float) -> bool:
        return any(self._left_s(unpack(cells), now) for cells in seen[:BENCH])

    def _lets_through(self, call: Call, seen: _Seen) -> bool:
        now = self._clock()
        if not self._shut(seen, now) or not self._panics(call, now):
            return False
        self._panicked.inc()
        return True

    def _panics(self, call: Call, now: float) -> bool:
        """Whether so many of those that the route picks from are shut that all are asked.

        Not when all are: then a refusal at once that says when to come back is better.
        """
        if not self._panic_share or len(call.choices) < 2:
            return False
        model, most = call.model, self._panic_share * len(call.choices)
        shut = sum(self._shut(self._lane(n, model).watch.peek(), now) for n in call.choices)
        return most < shut < len(call.choices)

    def _enter(self, lane: _Lane, seen: _Seen, backend: str) -> _Permits:
        """Take the permit of each circuit that is to be probed; raises ``CircuitOpen``."""
        now = self._clock()
        states = [unpack(cells) for cells in seen[:BENCH]]
        left_s = max(self._left_s(c, now) for c in states)
        if left_s:
            raise self._refusal(backend, left_s)
        permits: _Permits = ()
        for place, c in enumerate(states):
            if c.until:
                generation = self._take(lane.places[place], now)
                if generation < 0:
                    self._settle(lane, seen, permits, Blame.CLIENT, None)
                    raise self._refusal(backend, PROBED_SOON_S)
                permits = (*permits, (place, generation))
        if 0.0 < seen[BENCH][2] <= now:
            self._rows.change(lane.places[BENCH], partial(_stands_up, now))
        elif not seen[BENCH][2] and all(c.calm for c in states):
            lane.calm = seen
            lane.told = partial(self._told, lane, seen, _NO_PERMITS)
        return permits

    def _take(self, place: BreakerRow, now: float) -> int:
        """Take one permit; answers its generation, or -1 when another has it."""
        mine = owner_number(self._peers.here, self._peers.life_of(self._peers.here))

        def take(c: Circuit) -> Circuit | None:
            free = c.until and not self._left_s(c, now)
            return taken(c, self._rules, now, mine) if free else None

        found = self._rows.change(place, take)
        return -1 if found is None else found.generation

    def _refusal(self, backend: str, left_s: float) -> CircuitOpen:
        self._rejected.inc()
        return CircuitOpen(
            f"backend {backend!r} is failing and is not asked; try again in {math.ceil(left_s)} s",
            retry_after_s=left_s,
        )

    # -- after ----------------------------------------------------------------------------------

    def _told(
        self,
        lane: _Lane,
        seen: _Seen,
        permits: _Permits,
        reply: Reply | None,
        error: BaseException | None,
    ) -> None:
        """The try has a reply, whose end is still to come if it is a stream, or an error."""
        if reply is None:
            self._over(lane, seen, permits, error)
        elif reply.stream is not None:
            when_over(reply, partial(self._over, lane, seen, permits))
        else:
            lane.successes.inc()
            if permits or lane.peek() is not lane.calm:
                self._settle(lane, seen, permits, None, None)

    def _over(
        self, lane: _Lane, seen: _Seen, permits: _Permits, error: BaseException | None
    ) -> None:
        """The try is over."""
        if error is None:
            lane.successes.inc()
            if permits or lane.watch.peek() is not lane.calm:
                self._settle(lane, seen, permits, None, None)
        else:
            self._settle(lane, seen, permits, blame(error), error)

    def _settle(
        self,
        lane: _Lane,
        seen: _Seen,
        permits: _Permits,
        whose: Blame | None,
        error: BaseException | None,
    ) -> None:
        """Write an outcome down; ``whose`` fault it was, ``None``: it is a success."""
        now, held = self._clock(), dict(permits)
        current = lane.watch.peek()
        for number, place in enumerate(lane.places[:BENCH]):
            permit = held.get(number)
            generation = generation_of(seen[number]) if permit is None else permit
            if generation_of(current[number]) != generation:
                continue
            bad = place.fault is whose
            good = whose is None or (place.fault is Blame.NETWORK and _reached(whose, error))
            if permit is not None:
                self._rows.change(place, self._after_probe(bad, good, now), generation)
            elif bad:
                self._rows.change(place, partial(failed, rules=self._rules, now=now), generation)
            elif good and unpack(current[number]).failures:
                self._rows.change(place, succeeded, generation)
            if bad:
                self._rows.failures(place).inc()
        if whose is Blame.CAPACITY and isinstance(error, TpoError) and error.retry_after_s:
            for_s = min(error.retry_after_s, MAX_BENCH_S)
            self._rows.change(lane.places[BENCH], partial(benched, now=now, for_s=for_s))

    def _after_probe(self, bad: bool, good: bool, now: float) -> Any:
        if bad:
            return partial(probe_failed, rules=self._rules, now=now)
        if good:
            return partial(probe_passed, rules=self._rules, now=now)
        return partial(given_back, now=now)


def _reached(whose: Blame, error: BaseException | None) -> bool:
    """Whether the backend answered at all: then the network is in order."""
    if whose in (Blame.BACKEND, Blame.CREDENTIAL):
        return True
    said = error.reason if isinstance(error, TpoError) else ""
    return said.startswith("upstream_") or said == CALLER_LIMITED


def _stands_up(now: float, c: Circuit) -> Circuit | None:
    """Its pause is over."""
    return c._replace(since=now, until=0.0) if c.until <= now else None


FEATURE = Feature(Config, Breaker)
