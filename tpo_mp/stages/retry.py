"""Asks again when a try failed before its first byte: another backend at once, the same one later.

This stage decides whether there is another try and when; the route inside it decides where, and
leaves out what ``call.tried`` names while something else is left.  So every strategy that picks
one backend of several fails over, and ``failover`` does it in the configured order.

::

    whose fault (pipeline.attribution)    another backend    the same backend, after a pause
    client                                no                 no
    credential                            yes                no
    capacity, backend, network            yes                if the error is ``retryable``

A pause is the upstream's ``retry-after``, else ``strategy``'s: exponential is
``base_s * multiplier ** k`` after ``k + 1`` pauses, linear ``base_s * (k + 1)``, fixed ``base_s``,
never more than ``max_s``; with full jitter a time between nothing and that.
Who would have to wait for longer than ``max_s``, or beyond the caller's deadline, is answered the
error at once, with its ``retry-after``.

A call is tried ``attempts`` times, or once on each backend of its route if these are more (at most
``MOST_TRIES``); an open breaker is no try.  Beyond that bound of each call the whole host has one:
see ``pipeline.retry_budget``.

Invariants: nothing is asked again once a byte of a reply exists; a client that leaves ends its
pause or its try within 50 ms; a first try that succeeds waits for nothing and makes no task.
Known weakness: a pause ends up to 50 ms late; a backend that hangs is given up only when its own
timeouts pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from tpo_mp.errors import CircuitOpen, TpoError
from tpo_mp.pipeline.attribution import CONTEXT_TOO_SMALL, Blame, blame, may_have_worked
from tpo_mp.pipeline.promise import Done, Promise, run
from tpo_mp.pipeline.retry_budget import RetryBudget
from tpo_mp.ports import Counter, Env, Feature, Proceed
from tpo_mp.types import NO_DEADLINE, Call, Phase, Reply

MOST_TRIES: Final = 10
_NONE: Final[frozenset[str]] = frozenset()
_OPEN: Final = CircuitOpen.code
_SAID_NO: Final = b"x-should-retry: false"
_SAID_WHEN: Final = b"retry-after"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a call is tried, how long it waits in between, and what the host may spend."""

    attempts: Annotated[
        int,
        Meta(ge=1, le=MOST_TRIES, description="Tries in all, the first included; 1: no retries."),
    ] = 3
    strategy: Annotated[
        Literal["exponential", "linear", "fixed"],
        Meta(description="How pauses grow from one to the next."),
    ] = "exponential"
    base_s: Annotated[float, Meta(gt=0, le=300, description="The first pause.")] = 0.1
    max_s: Annotated[
        float,
        Meta(gt=0, le=300, description="Longest pause, also when an upstream asks for a longer."),
    ] = 5.0
    multiplier: Annotated[float, Meta(ge=1, le=10, description="Growth of exponential pauses.")] = (
        2.0
    )
    jitter: Annotated[
        Literal["full", "none"],
        Meta(description="`full`: a pause lasts from nothing to its length, by chance."),
    ] = "full"
    budget: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of the host's calls of late that may be retries."),
    ] = 0.1
    budget_floor: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Retries in ten seconds that are allowed besides."),
    ] = 3

    def __post_init__(self) -> None:
        if self.base_s > self.max_s:
            raise ValueError("base_s must not be more than max_s")


class Retry:
    """Tries a call until a backend answers or there is no sense in going on."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self.config = config
        self.clock = env.clock
        self.timers = env.timers
        self._random = env.random
        self._metrics = env.metrics
        self.budget = RetryBudget(
            env.ledger, env.clock, share=config.budget, floor=config.budget_floor
        )
        self._failures: dict[tuple[str, str], Counter] = {}
        self._retries: dict[str, Counter] = {}
        self._refused = {
            why: env.metrics.counter(
                "tpo_retries_refused_total", "Calls that were not tried again, by why.", reason=why
            )
            for why in ("budget", "deadline", "pause")
        }

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Answer with the first try that succeeds, or with why none did."""
        self.budget.count()
        out: Promise[Reply] = Promise()

        def done(reply: Reply | None, error: BaseException | None) -> None:
            # Nearly every first try ends here; only one that failed needs more than this.
            if reply is not None and not out.done:
                out.resolve(reply)
            else:
                _Tries(self, call, proceed, out).done(reply, error)

        # As ``_try`` does, written out: nearly every call has this try only.
        try:
            trying = proceed(call)
        except Exception as e:  # noqa: BLE001 - one that is no failure of a try is passed on as it is
            e.__traceback__ = None  # its frames hold this call
            done(None, e)
            return out
        if isinstance(trying, Promise):
            trying.then(done)
            if not trying.done:
                out.cancel_with = trying.cancel
        else:
            cancel = run(trying, done)
            if cancel is not None:
                out.cancel_with = cancel
        return out

    def pause_s(self, number: int) -> float:
        """How long the ``number``-th pause of a call lasts (the first is 0)."""
        config = self.config
        if config.strategy == "exponential":
            length = config.base_s * config.multiplier**number
        elif config.strategy == "linear":
            length = config.base_s * (number + 1)
        else:
            length = config.base_s
        length = min(length, config.max_s)
        return self._random.uniform(0.0, length) if config.jitter == "full" else length

    def count_failure(self, backend: str, kind: str) -> None:
        """Count one failed try."""
        counter = self._failures.get((backend, kind))
        if counter is None:
            counter = self._failures[backend, kind] = self._metrics.counter(
                "orchestrator_worker_errors_total", "Tries of a backend that failed.",
                worker=backend, error_kind=kind,
            )  # fmt: skip
        counter.inc()

    def count_retry(self, backend: str) -> None:
        """Count one more try."""
        counter = self._retries.get(backend)
        if counter is None:
            counter = self._retries[backend] = self._metrics.counter(
                "orchestrator_retries_total",
                "Further tries of a call, by the backend whose failure led to them.",
                worker=backend,
            )
        counter.inc()

    def count_refusal(self, why: str) -> None:
        """Count one call that was not tried again."""
        self._refused[why].inc()


class _Tries:
    """One call's tries, one after the other.

    A backend that failed is ``curable`` when waiting may help and ``barred`` when it does not.
    """

    __slots__ = (
        "_asked_until", "_barred", "_call", "_curable", "_failed_by", "_moves", "_pause", "_pauses",
        "_proceed", "_stage", "_too_long", "_tries", "_worth", "out",
    )  # fmt: skip

    def __init__(self, stage: Retry, call: Call, proceed: Proceed, out: Promise[Reply]) -> None:
        self._stage = stage
        self._call = call
        self._proceed = proceed
        self._tries = 0
        self._pauses = 0
        self._moves = 0
        self._barred: frozenset[str] = _NONE
        self._curable: frozenset[str] = _NONE
        self._asked_until = 0.0
        """Until when the upstreams asked us to wait."""
        self._too_long = False
        """Whether one of them asked for more than we wait."""
        self._worth: TpoError | None = None
        """The last failure that tells the client when to come back, and whose it was."""
        self._failed_by = ""
        self._pause: _Pause | None = None
        self.out = out

    def go(self) -> None:
        """Try once more."""
        cancel = _try(self._proceed, self._call, self.done)
        if cancel is not None:
            self.out.cancel_with = cancel

    def done(self, reply: Reply | None, error: BaseException | None) -> None:
        """Take the outcome of one try."""
        out = self.out
        if reply is not None:
            if not out.done:
                out.resolve(reply)
            elif reply.stream is not None:  # given up meanwhile
                reply.stream.cancel()
        elif not out.done:
            if isinstance(error, TpoError):
                self._failed(error)
            else:
                out.reject(error or RuntimeError("a backend answered nothing"))

    def _failed(self, error: TpoError) -> None:
        """Go on, wait, or give up."""
        call, name = self._call, self._call.backend
        whose = blame(error)
        if not name or (whose is Blame.CLIENT and not self._may_fit(error, name)):
            self._end(error)
            return
        if call.tried is None:
            call.tried = set()
        call.tried.add(name)
        call.unclear = call.unclear or may_have_worked(error)
        if error.code == _OPEN:
            call.attempts -= 1  # nobody was asked
        else:
            self._tries += 1
            self._stage.count_failure(name, error.label)
            self._judge(name, error, whose)
        if self._tries >= self._most():
            self._give_up(error, "")
        elif any(other not in call.tried for other in call.choices):
            self._move(error)
        else:
            self._wait(error)

    def _may_fit(self, error: TpoError, name: str) -> bool:
        """Whether a prompt that was too long here may fit elsewhere."""
        tried = self._call.tried or ()
        left = any(other != name and other not in tried for other in self._call.choices)
        return error.reason == CONTEXT_TOO_SMALL and left

    def _judge(self, name: str, error: TpoError, whose: Blame) -> None:
        """Tell whether the backend may be asked again for this call, and not before when."""
        curable = error.retryable and whose is not Blame.CREDENTIAL and _may_come_back(error)
        if curable:
            self._worth, self._failed_by = error, name
            asked_s = error.retry_after_s or 0.0
            if asked_s > self._stage.config.max_s:
                self._too_long, curable = True, False
            elif asked_s:
                until = self._stage.clock() + asked_s
                self._asked_until = max(self._asked_until, until)
        if curable:
            self._curable |= {name}
        else:
            self._barred |= {name}
            self._curable -= {name}

    def _most(self) -> int:
        attempts = self._stage.config.attempts
        return (
            attempts if attempts == 1 else min(max(attempts, len(self._call.choices)), MOST_TRIES)
        )

    def _move(self, error: TpoError) -> None:
        """Ask another backend at once."""
        stage, call = self._stage, self._call
        if stage.clock() >= call.deadline:
            self._give_up(error, "deadline")
        elif error.code == _OPEN:
            self.go()
        elif stage.budget.may_move():
            self._moves += 1
            self._again(call.backend)
        else:
            self._give_up(error, "budget")

    def _wait(self, error: TpoError) -> None:
        """Ask again after a pause, if the caller has the time and the host the means."""
        stage, call = self._stage, self._call
        now = stage.clock()
        until = self._asked_until
        if until <= now:
            until = now + stage.pause_s(self._pauses)
        if not self._curable or self._pauses >= stage.config.attempts - 1:
            self._give_up(error, "pause" if self._too_long else "")
        elif until >= call.deadline:
            self._give_up(error, "deadline")
        elif not stage.budget.take():
            self._give_up(error, "budget")
        else:
            self._pauses += 1
            self._pause = pause = _Pause(self, until)
            self.out.cancel_with = self._leave
            stage.timers.add(pause, now)

    def _leave(self) -> None:
        """The client left during a pause."""
        if self._pause is not None:
            self._pause.drop()

    def paused(self) -> None:
        """Ask again: any backend but those that are no use, and rather not the last one."""
        self._pause = None
        self.out.cancel_with = None
        call = self._call
        last = {call.backend}
        call.tried = set(self._barred | last if self._curable - last else self._barred)
        self._again(self._failed_by)

    def _again(self, because_of: str) -> None:
        self._stage.count_retry(because_of)
        self._call.first_byte_at = 0.0  # the failed try's
        self.go()

    def _give_up(self, error: TpoError, why: str) -> None:
        """Answer the failure that tells most: one of a backend that was asked and may recover."""
        if why:
            self._stage.count_refusal(why)
        if self._moves:
            self._stage.budget.in_vain(self._moves)
        if self._worth is not None:
            error = self._worth
            self._call.backend = self._failed_by
        self._end(error)

    def _end(self, error: TpoError) -> None:
        self._worth = None
        self.out.reject(error)


def _try(proceed: Proceed, call: Call, done: Done) -> Callable[[], object] | None:
    """Try once; ``done`` may be called before this returns what cancels the try."""
    try:
        awaitable = proceed(call)
    except Exception as e:  # noqa: BLE001 - one that is no failure of a try is passed on as it is
        e.__traceback__ = None  # its frames hold this call
        done(None, e)
        return None
    return run(awaitable, done)


class _Pause:
    """The time until the next try, as the timers keep it."""

    __slots__ = ("_tries", "deadline", "filed_at")

    def __init__(self, tries: _Tries, deadline: float) -> None:
        self._tries: _Tries | None = tries
        self.deadline = deadline
        self.filed_at = 0.0

    def expire(self) -> None:
        """It is over."""
        tries, self._tries = self._tries, None
        if tries is not None:
            tries.paused()

    def drop(self) -> None:
        """Nobody waits any more; the timers forget it when they come by."""
        self._tries = None
        self.deadline = NO_DEADLINE


def _may_come_back(error: TpoError) -> bool:
    """Whether the upstream leaves it to us, or says when in a way that we understand."""
    lines = error.lines
    return not lines or (
        _SAID_NO not in lines and (error.retry_after_s is not None or _SAID_WHEN not in lines)
    )


FEATURE = Feature(Config, Retry)
