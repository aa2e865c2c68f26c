"""Asks a second backend when the first one is slow, and takes whichever answers first.

The first byte decides: with it a reply exists, the other request is cancelled and costs its
backend no more.  The second request goes out after ``delay_s``, or after the time within which 95
of the last hundred replies had begun; at once when the first one fails.  How many second requests
a host may send is a share of its calls and a small floor (``pipeline.retry_budget``, a purse of
its own), so that a slow upstream does not get twice the load for being slow.

The backends take turns in being the first; those that a breaker keeps closed off are left out
while there are others.

Invariants: at most two requests of one call are under way; a reply comes whole from one backend;
a client that leaves ends both; an error that is the client's own fault ends both at once.
Known weakness: the delay is up to 50 ms late, and learnt by each worker for itself.  What a loser
had produced is not known: only the prompt is counted as lost, as the winner's backend counted it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from functools import partial
from typing import Annotated, Final, Protocol

from msgspec import Meta, Struct

from tpo_mp.errors import TpoError
from tpo_mp.pipeline.attribution import Blame, blame, may_have_worked
from tpo_mp.pipeline.endings import when_over
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.retry_budget import RetryBudget
from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import NO_DEADLINE, Call, Reply

KEPT: Final = 100
LEAST: Final = 20
"""Replies after which the delay is learnt."""


class Racing(Protocol):
    """What this route needs of a target."""

    name: str

    def blocked(self, call: Call) -> bool:
        """Whether it should be left out while another is left."""

    def infer(self, call: Call) -> Awaitable[Reply]:
        """One try."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a second backend is asked, and how often that may be."""

    delay_s: Annotated[
        Annotated[float, Meta(ge=0, le=600)] | None,
        Meta(description="Seconds until a second backend is asked [learnt: 95 % answer sooner]."),
    ] = None
    first_delay_s: Annotated[
        float,
        Meta(gt=0, le=600, description="The delay while it is not learnt yet."),
    ] = 1.0
    min_delay_s: Annotated[
        float, Meta(ge=0, le=600, description="A learnt delay is not shorter.")
    ] = 0.05
    budget: Annotated[
        float, Meta(ge=0, le=1, description="Share of the host's calls that a second is asked for.")
    ] = 0.1
    budget_floor: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Second requests in ten seconds allowed besides."),
    ] = 3


class HedgeRoute:
    """Lets two backends race."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._metrics = env.metrics
        self.clock = env.clock
        self.timers = env.timers
        self.budget = RetryBudget(
            env.ledger, env.clock,
            share=config.budget, floor=config.budget_floor, name="hedge:budget",
        )  # fmt: skip
        self._turn = 0
        self._took: deque[float] = deque(maxlen=KEPT)
        self._fresh = 0
        self._learnt_s = config.first_delay_s
        self._counters: dict[tuple[str, str], Counter] = {}

    def __call__(self, call: Call, targets: Sequence[Racing], /) -> Awaitable[Reply]:
        """Answer with the first reply that begins."""
        self.budget.count()
        if len(targets) == 1:
            return targets[0].infer(call)
        if call.tried:
            targets = [t for t in targets if t.name not in call.tried] or targets
        usable = [target for target in targets if not target.blocked(call)] or list(targets)
        self._turn += 1
        first = self._turn % len(usable)
        race = _Race(self, call, usable[first:] + usable[:first])
        race.begin()
        return race.out

    @property
    def delay_s(self) -> float:
        """How long a first request is waited for alone."""
        given = self._config.delay_s
        return self._learnt_s if given is None else given

    def learn(self, took_s: float) -> None:
        """Note how long a reply took to begin."""
        self._took.append(took_s)
        self._fresh += 1
        if self._fresh >= LEAST:
            self._fresh = 0
            ordered = sorted(self._took)
            slow_s = ordered[int(len(ordered) * 0.95)]
            self._learnt_s = max(slow_s, self._config.min_delay_s)

    def count_hedge(self, backend: str) -> None:
        """Count a second request."""
        self._count(
            "tpo_hedges_total", "Second requests sent because a first was slow or failed.", backend
        )

    def count_win(self, backend: str) -> None:
        """Count a second request that was answered first."""
        self._count("tpo_hedges_won_total", "Second requests that were answered first.", backend)

    def count_lost(self, backend: str, tokens: int) -> None:
        """Count the prompt tokens of a request that was cancelled."""
        text = "Prompt tokens of requests that lost a race."
        self._count("tpo_hedge_lost_tokens_total", text, backend, tokens)

    def _count(self, name: str, text: str, backend: str, n: int = 1) -> None:
        counter = self._counters.get((name, backend))
        if counter is None:
            counter = self._metrics.counter(name, text, backend=backend)
            self._counters[name, backend] = counter
        counter.inc(n)


class _Race:
    """One call on its way to one or two backends; also the entry of its timer."""

    __slots__ = (
        "_call", "_left", "_over", "_route", "_running", "deadline", "filed_at", "out"
    )  # fmt: skip

    def __init__(self, route: HedgeRoute, call: Call, targets: list[Racing]) -> None:
        self._route = route
        self._call = call
        self._left = targets[:2]
        self._running: dict[str, Callable[[], object]] = {}
        self._over = False
        self.deadline = NO_DEADLINE
        self.filed_at = 0.0
        self.out: Promise[Reply] = Promise()

    def begin(self) -> None:
        """Ask the first, and have the time watched."""
        route = self._route
        now = route.clock()
        self._ask(self._call)
        if self._left:
            self.deadline = now + route.delay_s
            route.timers.add(self, now)

    def expire(self) -> None:
        """The first is slow: ask the second, if that is not asked for too often."""
        if self._left and self._route.budget.take():
            self._call.unclear = True
            self._ask_second()

    def _ask_second(self) -> None:
        self._call.attempts += 1
        self._route.count_hedge(self._left[0].name)
        # Both write down how they fare, so the second has notes of its own.
        self._ask(copy(self._call))

    def _ask(self, call: Call) -> None:
        target = self._left.pop(0)
        done = partial(self._done, target.name, call, self._route.clock())
        try:
            awaitable = target.infer(call)
        except Exception as e:  # noqa: BLE001 - it is this request's outcome
            e.__traceback__ = None  # its frames hold this call
            done(None, e)
            return
        self._running[target.name] = _nothing
        cancel = run(awaitable, done)
        if cancel is not None:
            self._running[target.name] = cancel
            self.out.cancel_with = self._cancel_all

    def _done(
        self,
        name: str,
        call: Call,
        asked_at: float,
        reply: Reply | None,
        error: BaseException | None,
    ) -> None:
        self._running.pop(name, None)
        if self._over:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
        elif reply is not None:
            self._won(name, call, asked_at, reply)
        elif not isinstance(error, TpoError) or blame(error) is Blame.CLIENT:
            self._end(error)
        elif self._left:
            self.deadline = NO_DEADLINE
            self._call.unclear = self._call.unclear or may_have_worked(error)
            self._ask_second()
        elif not self._running:
            self._end(error)

    def _won(self, name: str, call: Call, asked_at: float, reply: Reply) -> None:
        route, mine = self._route, self._call
        route.learn(route.clock() - asked_at)
        if call is not mine:
            route.count_win(name)
            mine.backend, mine.note, mine.seen = call.backend, call.note, call.seen
            mine.upstream_at, mine.first_byte_at = call.upstream_at, call.first_byte_at
        else:
            mine.backend = name
        losers = list(self._running)
        self._cancel_all()
        if losers:
            when_over(reply, partial(_count_lost, route, losers, reply))
        self.out.resolve(reply)

    def _end(self, error: BaseException | None) -> None:
        self._cancel_all()
        self.out.reject(error or RuntimeError("a backend answered nothing"))

    def _cancel_all(self) -> None:
        self._over = True
        self.deadline = NO_DEADLINE
        self._left = []
        running, self._running = self._running, {}
        for cancel in running.values():
            cancel()


def _count_lost(
    route: HedgeRoute, losers: list[str], reply: Reply, _error: TpoError | None
) -> None:
    if reply.usage is not None and reply.usage.prompt > 0:
        for name in losers:
            route.count_lost(name, reply.usage.prompt)


def _nothing() -> None:
    """Stands for a request whose outcome comes before it can be cancelled."""


FEATURE = Feature(Config, HedgeRoute)
