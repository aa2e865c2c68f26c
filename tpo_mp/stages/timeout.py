"""Gives a try up when its backend is much later than it ever is, long before a fixed timeout.

How late that is, is learnt by backend and model, for streams (to their first event) and whole
replies apart: ``factor`` times the time within which ``quantile`` of the last ten to twenty
minutes' replies began, of all workers together.  While fewer than ``min_samples`` are known it is
nothing, and the backend's own ``timeouts`` hold alone.  The try then fails as a timeout of the
backend, and is retried elsewhere.

What is later than usual need not be broken.  So after each one that was given up the next are
waited for twice as long, until a reply begins within the learnt time again (the back-off of TCP's
timer, RFC 6298), and the breaker counts those that were given eight times the learnt time, or
``ceiling_s``: what is silent for so long does not merely answer slower.  A try that was given up is
a sample too, of a little more than it was given: when more than a hundredth come that late, the
learnt time itself grows until they pass.

Invariants: a try has at least ``floor_s`` and at most ``ceiling_s``; nothing is given up after a
reply began, and a call whose deadline comes first ends by its deadline; samples outlive workers.
Known weakness: a time is up to 50 ms long, and learnt anew after twenty minutes without calls; each
worker doubles for itself, so a backend that became slower costs each of them a few tries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar, Final

from tpo_mp.errors import BackendTimeout
from tpo_mp.pipeline.attribution import UNUSUALLY_SLOW
from tpo_mp.pipeline.breaker_rows import KnownTargets
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.scoring import target_of
from tpo_mp.pipeline.usual_times import UsualTimes, times_of
from tpo_mp.ports import BackendConfig, Counter, Env, Feature, Proceed, Score
from tpo_mp.types import NO_DEADLINE, Call, Phase, Reply

LEARNT_FOR_S: Final = 5.0
"""So long a learnt time is used before it is asked for again."""
LATER: Final = 1.05
LONGER: Final = 2.0
"""Times the last one is the next try waited for, after one that was given up."""
SILENT: Final = 8.0
"""Times the learnt time, three doublings: who was given that and said nothing is broken."""
_MAX_LANES: Final = 4096


class Config(UsualTimes, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How late is too late."""


class _Lane:
    """A target's streams, or its whole replies, as this process knows them."""

    __slots__ = ("asked_at", "learnt_s", "limit_s", "score", "times")

    def __init__(self, times: Score | None, score: Score | None) -> None:
        self.times = times
        self.score = score
        self.learnt_s = self.limit_s = NO_DEADLINE
        self.asked_at = -LEARNT_FOR_S

    def learn(self, learnt_s: float) -> None:
        """Go by what is usual now; what was doubled stays so until a reply is in time."""
        doubled = self.limit_s > self.learnt_s and learnt_s != NO_DEADLINE
        self.limit_s = max(self.limit_s, learnt_s) if doubled else learnt_s
        self.learnt_s = learnt_s

    def answered(
        self, clock: Callable[[], float], asked_at: float, reply: Reply | None, _error: object
    ) -> None:
        """A reply began, or not."""
        if reply is not None and self.times is not None:
            now = clock()
            self.times.good(now - asked_at, now)
            if self.limit_s > self.learnt_s and now - asked_at <= self.learnt_s:
                self.limit_s = self.learnt_s


class Timeout:
    """Waits for each try as long as is usual, times a factor."""

    phase: ClassVar[Phase] = Phase.ATTEMPT

    def __init__(self, config: Config, env: Env) -> None:
        self.env = env
        self._config = config
        self._known = KnownTargets()
        self._lanes: dict[tuple[str, str, bool], _Lane] = {}
        self._given_up: dict[str, Counter] = {}

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Learn which backends there are; see ``ports.Stage``."""
        self._known = KnownTargets(backends)
        self._lanes.clear()

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Try, and give up in time."""
        key = (call.backend, call.model, call.stream)
        lane = self._lanes.get(key) or self._lane(key)
        now = self.env.clock()
        if now - lane.asked_at >= LEARNT_FOR_S:
            self._learn(lane, now)
        trying = proceed(call)
        if lane.limit_s + now >= call.deadline or (isinstance(trying, Promise) and trying.done):
            if isinstance(trying, Promise):
                trying.then(partial(lane.answered, self.env.clock, now))
            return trying
        return _Try(self, lane, call.backend, trying, now).out

    def give_up(self, backend: str, lane: _Lane, limit_s: float) -> BackendTimeout:
        """Count a try that is given up after ``limit_s``, as a failure and as a sample."""
        now, ceiling_s = self.env.clock(), self._config.ceiling_s
        silent = limit_s >= min(SILENT * lane.learnt_s, ceiling_s)
        if lane.learnt_s <= lane.limit_s <= limit_s:  # not by those that began before it grew
            lane.limit_s = max(limit_s, min(limit_s * LONGER, ceiling_s))
        if lane.times is not None:
            lane.times.good(limit_s * LATER, now)
        if lane.score is not None:
            lane.score.bad("silent" if silent else UNUSUALLY_SLOW, now)
        counter = self._given_up.get(backend)
        if counter is None:
            counter = self._given_up[backend] = self.env.metrics.counter(
                "tpo_timeouts_learnt_total",
                "Tries given up because their backend was later than it usually is.",
                backend=backend,
            )
        counter.inc()
        said = f"backend {backend!r} did not answer within {limit_s:.2f} s"
        if silent:
            return BackendTimeout(f"{said}, nor the tries before it", reason="silent")
        return BackendTimeout(
            f"{said}, which is much longer than it usually needs", reason=UNUSUALLY_SLOW
        )

    def _lane(self, key: tuple[str, str, bool]) -> _Lane:
        if len(self._lanes) >= _MAX_LANES:
            self._lanes.clear()
        backend, model, stream = key
        target, scores = target_of(self._known, backend, model), self.env.scores
        times = scores.of(times_of(target, stream=stream))
        lane = self._lanes[key] = _Lane(times, scores.of(target))
        return lane

    def _learn(self, lane: _Lane, now: float) -> None:
        lane.asked_at = now
        learnt_s = self._config.limit_s(lane.times, now)
        lane.learn(NO_DEADLINE if learnt_s is None else learnt_s)


class _Try:
    """One try that is watched; also the entry of its timer."""

    __slots__ = ("_asked_at", "_backend", "_cancel", "_lane", "_limit_s", "_stage", "deadline",
                 "filed_at", "out")  # fmt: skip

    def __init__(
        self, stage: Timeout, lane: _Lane, backend: str, trying: Awaitable[Reply], now: float
    ) -> None:
        self._stage = stage
        self._lane = lane
        self._backend = backend
        self._asked_at = now
        self._limit_s = lane.limit_s
        self.out: Promise[Reply] = Promise()
        self.deadline = now + lane.limit_s
        self.filed_at = 0.0
        cancel = run(trying, self._done)
        self._cancel = cancel
        if not self.out.done:
            self.out.cancel_with = cancel
            if self.deadline != NO_DEADLINE:
                stage.env.timers.add(self, now)

    def expire(self) -> None:
        """It is too late."""
        out, cancel, self._cancel = self.out, self._cancel, None
        if out.done:
            return
        out.reject(self._stage.give_up(self._backend, self._lane, self._limit_s))
        if cancel is not None:
            cancel()

    def _done(self, reply: Reply | None, error: BaseException | None) -> None:
        self.deadline = NO_DEADLINE
        self._cancel = None
        if self.out.done:  # given up meanwhile
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            return
        if reply is None:
            self.out.reject(error or RuntimeError("a backend answered nothing"))
            return
        self._lane.answered(self._stage.env.clock, self._asked_at, reply, None)
        self.out.resolve(reply)


FEATURE = Feature(Config, Timeout)
