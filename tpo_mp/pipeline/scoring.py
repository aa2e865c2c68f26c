"""Counts how every try of a backend ends, whatever stages a config has: the host's scores.

It is the innermost layer of a try, so what it times is the backend alone, without a wait for a
place or for another try.  A target is a backend asked for a model that the config names, or for
any other one (``BACKEND:*``), so there are as many as the config is long.

Invariants: a try counts once; what is its client's doing counts nowhere (``attribution``).
Known weakness: a stream counts at its end, so one that runs for an hour says nothing until then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tpo_mp.errors import TpoError
from tpo_mp.ports import BackendConfig, Env, Score, Scores
from tpo_mp.types import Call, Reply, TryTally

from .attribution import Blame, blame
from .breaker_rows import ANY, KnownTargets, Serving
from .endings import when_over
from .promise import Promise, run

Serve: TypeAlias = Callable[[Call], Awaitable[Reply]]
Clock: TypeAlias = Callable[[], float]
LATENCY_SLICES: Final = 2
"""Of latency the last ten to twenty minutes are shown."""
_REMEMBERED: Final = 4096


def target_of(known: KnownTargets, backend: str, model: str) -> str:
    """What a target is called."""
    return f"{backend}:{model if model in known.models.get(backend, ()) else ANY}"


def targets_of(known: KnownTargets, backend: str) -> Iterator[tuple[str, str]]:
    """The models that a backend is known for, each with the name of its target."""
    for model in [*known.models[backend], *([ANY] if backend in known.open_ended else [])]:
        yield model, f"{backend}:{model}"


def scored(serve: Serve, entry: BackendConfig, env: Env) -> Serve:
    """``serve`` with its outcomes counted."""
    known, scores, clock = KnownTargets([entry]), env.scores, env.clock
    found: dict[str, Score | None] = {}

    def find(model: str) -> Score | None:
        if len(found) >= _REMEMBERED:
            found.clear()
        score = found[model] = scores.of(target_of(known, entry.name, model))
        return score

    def attempt(call: Call) -> Awaitable[Reply]:
        model = call.model
        score = found[model] if model in found else find(model)
        if score is None:
            return serve(call)
        try:
            trying = serve(call)
        except BaseException as error:
            _failed(score, clock, error)
            raise

        def answered(reply: Reply | None, error: BaseException | None) -> None:
            if reply is None:
                _failed(score, clock, error)
            elif reply.stream is None:
                score.good(call.first_byte_at - call.upstream_at, clock())
            else:
                when_over(reply, _Streamed(score, clock, call.first_byte_at - call.upstream_at))

        if isinstance(trying, Promise):
            trying.then(answered)
            return trying
        return _passed_on(trying, answered)

    return attempt


def _passed_on(
    trying: Awaitable[Reply], answered: Callable[[Reply | None, BaseException | None], None]
) -> Promise[Reply]:
    """Wait for what is no promise, and tell of its outcome once."""
    out: Promise[Reply] = Promise()
    out.then(answered)

    def done(reply: Reply | None, error: BaseException | None) -> None:
        if reply is None:
            out.reject(error or RuntimeError("a backend answered nothing"))
        elif not out.done:
            out.resolve(reply)
        elif reply.stream is not None:
            reply.stream.cancel()  # given up meanwhile

    cancel = run(trying, done)
    if not out.done:
        out.cancel_with = cancel
    return out


class _Streamed:
    """Told of a stream's end; a ``partial``, with thousands open, is four times as large."""

    __slots__ = ("_clock", "_score", "_took_s")

    def __init__(self, score: Score, clock: Clock, took_s: float) -> None:
        self._score = score
        self._clock = clock
        self._took_s = took_s

    def __call__(self, error: TpoError | None) -> None:
        if error is None:
            self._score.good(self._took_s, self._clock())
        else:
            _failed(self._score, self._clock, error)


def _failed(score: Score, clock: Clock, error: BaseException | None) -> None:
    whose = Blame.CLIENT if error is None else blame(error)
    if whose in (Blame.BACKEND, Blame.NETWORK):
        score.bad(error.reason if isinstance(error, TpoError) else "no_reply", clock())
    elif whose is Blame.CAPACITY:
        score.busy(clock())
    elif whose is Blame.CREDENTIAL:
        score.refused(clock())


@dataclass(frozen=True, slots=True)
class BackendTally:
    """All tries of a backend since the host started; their mean is of the last minutes, in ms."""

    requests: int
    failures: int
    avg_latency_ms: float | None
    failing: bool = False
    """Whether the last try failed."""


class Scoreboard:
    """Reads the scores of a config's backends, of a whole one or by model."""

    def __init__(self, scores: Scores, entries: Sequence[Serving]) -> None:
        self._scores = scores
        self.known = KnownTargets(entries)

    def of(self, backend: str) -> list[tuple[str, Score]]:
        """A backend's models with their scores; one that has none is left out."""
        found = ((m, self._scores.of(name)) for m, name in targets_of(self.known, backend))
        return [(model, score) for model, score in found if score is not None]

    def total(self, backend: str) -> TryTally:
        """All tries of a backend since the host started."""
        return sum_up(score.total() for _, score in self.of(backend))

    def tallies(self, now: float) -> dict[str, BackendTally]:
        """What the tries of each backend came to."""
        found: dict[str, BackendTally] = {}
        for name in self.known.models:
            tally = self.total(name)
            recent = (score.recent(now, LATENCY_SLICES) for _, score in self.of(name))
            mean_s = sum_up(recent).mean_s()
            found[name] = BackendTally(
                tally.good + tally.bad + tally.busy + tally.refused,
                tally.bad,
                None if mean_s is None else round(mean_s * 1e3, 1),
                self.last_bad(name)[0] > self.last_good_at(name),
            )
        return found

    def last_bad(self, backend: str) -> tuple[float, str]:
        """When one last failed, and why; 0: never."""
        return max((score.last_bad() for _, score in self.of(backend)), default=(0.0, ""))

    def last_good_at(self, backend: str) -> float:
        """When one was last answered; 0: never."""
        return max((score.last_good_at() for _, score in self.of(backend)), default=0.0)


def sum_up(tallies: Iterable[TryTally]) -> TryTally:
    """Add up."""
    total = TryTally()
    for tally in tallies:
        total = total.plus(tally)
    return total
