"""Folds the configured stages into one function, once per config.

Phases nest, outermost first: ADMIT · RAG · STREAM · POST_PROCESS · ASSEMBLE · INFERENCE · ATTEMPT.
ADMIT runs on the shard that owns the call, everything inside it on the shard that serves it, so
the fold is cut in two: ``admit`` and ``serve``.
ATTEMPT stages wrap each try of one backend; all others wrap the call once.

Runs of synchronous stages become a flat tuple called in line; a coroutine exists only where an
asynchronous stage is configured.

Invariants: the order is exactly the configured list; a list that contradicts the phases is an
error, never a silent sort; an ``after`` runs in reverse order, and only when its ``before`` ran and
passed the call on: a stage that answers by itself has done its part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import isfunction
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

from tpo_mp.errors import ConfigError
from tpo_mp.types import Call, Phase, Reply

from .kept import ToldAnswer
from .promise import Promise, run
from .stage_times import MARKED, StageTimes

_INNER = (Phase.RAG, Phase.STREAM, Phase.POST_PROCESS, Phase.ASSEMBLE, Phase.INFERENCE)
Serve: TypeAlias = Callable[[Call], Awaitable[Reply]]
Named: TypeAlias = tuple[str, Any]
Before: TypeAlias = Callable[[Call], Reply | None]
After: TypeAlias = Callable[[Call, Reply], Reply | None]


class AnswerTeller(Protocol):
    """A stage that may answer a call before it is one, from its bytes alone."""

    def key_of(self, call: Call) -> bytes | None:
        """What the answer to a call is kept under; ``None``: the stage has none to give."""
        ...

    def recall(self, key: bytes, question: Call) -> ToldAnswer | None:
        """What a call with this key is told in the form of ``question``, if it is told at once.

        It is counted as told.
        """
        ...


def _teller(stages: Sequence[Any]) -> AnswerTeller | None:
    """The stage that tells again, if all outside it let such calls pass unseen."""
    for stage in stages:
        if hasattr(stage, "recall"):
            return stage  # type: ignore[no-any-return]  # the protocol's one word
        if getattr(stage, "sees_repeats", True):
            return None
    return None


def check_order(stages: Sequence[Named]) -> None:
    """Refuse a stage list that contradicts the nesting of phases."""
    for (outer, a), (inner, b) in pairwise(stages):
        if b.phase < a.phase:
            raise ConfigError(
                f"pipeline.stages: {inner!r} ({Phase(b.phase).name}) must come before "
                f"{outer!r} ({Phase(a.phase).name}); phases nest "
                + " · ".join(p.name for p in Phase)
            )
    seen: set[str] = set()
    for name, _ in stages:
        if name in seen:
            raise ConfigError(f"pipeline.stages: {name!r} is listed twice")
        seen.add(name)


def fold(stages: Sequence[Any], core: Serve) -> Serve:
    """Wrap ``core`` in ``stages``, outermost first."""
    for outer, stage in pairwise(stages):
        if hasattr(stage, "behind"):
            stage.behind(outer)
    serve = core
    flat: list[Any] = []
    for stage in reversed(stages):
        if callable(stage):
            serve = _layer(stage, _flatten(flat, serve))
            flat = []
        else:
            flat.insert(0, stage)
    return _flatten(flat, serve)


def _layer(stage: Any, inner: Serve) -> Serve:
    if hasattr(stage, "inside"):
        stage.inside(inner)

    # A bound method is called within the interpreter, an object by way of its type's slot.
    enter = stage if isfunction(stage) else stage.__call__

    def layer(call: Call) -> Awaitable[Reply]:
        return enter(call, inner)  # type: ignore[no-any-return]  # the Stage protocol's answer

    return layer


def _flatten(stages: list[Any], core: Serve) -> Serve:
    """Run synchronous stages in line round ``core``."""
    befores: list[tuple[Before, tuple[After, ...]]] = []
    afters: tuple[After, ...] = ()
    for stage in stages:
        if hasattr(stage, "before"):
            befores.append((stage.before, afters))
        if hasattr(stage, "after"):
            afters = (stage.after, *afters)
    if afters:
        return _around(tuple(befores), afters, core)
    return _in_front(tuple(before for before, _ in befores), core) if befores else core


def _in_front(befores: tuple[Before, ...], core: Serve) -> Serve:
    def flat(call: Call) -> Awaitable[Reply]:
        for before in befores:
            answered = before(call)
            if answered is not None:
                out: Promise[Reply] = Promise()
                out.resolve(answered)
                return out
        return core(call)

    return flat


def _around(
    befores: tuple[tuple[Before, tuple[After, ...]], ...], afters: tuple[After, ...], core: Serve
) -> Serve:
    """Each ``before`` comes with the afters that are due when it answers by itself."""

    def flat(call: Call) -> Awaitable[Reply]:
        way = _WayBack(call, afters)
        for before, outer in befores:
            answered = before(call)
            if answered is not None:
                way.afters = outer
                way.done(answered, None)
                return way.out
        way.out.cancel_with = run(core(call), way.done)
        return way.out

    return flat


class _WayBack:
    """A reply's way out through the ``after`` functions."""

    __slots__ = ("_call", "afters", "out")

    def __init__(self, call: Call, afters: tuple[After, ...]) -> None:
        self._call = call
        self.afters = afters
        self.out: Promise[Reply] = Promise()

    def done(self, reply: Reply | None, error: BaseException | None) -> None:
        if self.out.done:  # given up meanwhile
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            return
        if reply is None:
            self.out.reject(error or RuntimeError("a stage answered nothing"))
            return
        try:
            for after in self.afters:
                reply = after(self._call, reply) or reply
        except Exception as e:  # noqa: BLE001 - becomes the call's error
            if reply.stream is not None:
                reply.stream.cancel()
            self.out.reject(e)
        else:
            self.out.resolve(reply)


class Chain:
    """The compiled pipeline of one config epoch."""

    __slots__ = ("admit", "epoch", "join", "names", "serve", "teller")

    def __init__(
        self,
        stages: Sequence[Named],
        route: Callable[[Sequence[Any]], Serve],
        *,
        epoch: int = 0,
        times: StageTimes | None = None,
    ) -> None:
        """Compile.

        ``route`` receives the ATTEMPT stages and answers the innermost function, which picks
        backends and wraps each try in them; ``times`` measures the stages.
        """
        check_order(stages)
        self.epoch = epoch
        self.names = tuple(name for name, _ in stages)
        admit = [s for _, s in stages if s.phase is Phase.ADMIT]
        attempt = [s for _, s in stages if s.phase is Phase.ATTEMPT]
        joins = [s.join for _, s in stages if hasattr(s, "join")]
        self.join: Callable[[bytes, Call], Awaitable[Reply]] | None = joins[0] if joins else None
        """Serves a call that was brought here because of its key."""
        self.teller = _teller([s for _, s in stages])
        """Says at once what was told before, where no stage outside it must see each call."""
        serve = route(attempt)
        for phase in reversed(_INNER):
            layers = [s for _, s in stages if s.phase is phase]
            if layers and times is not None and phase in MARKED:
                serve = times.mark(phase, layers, serve, fold)
            else:
                serve = fold(layers, serve)
        self.serve: Serve = serve
        self.admit: Callable[[Serve], Serve] = lambda core: fold(admit, core)
