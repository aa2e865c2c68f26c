"""Folds the configured stages into one function, once per config.

Phases nest, outermost first: ADMIT · RAG · STREAM · POST_PROCESS · ASSEMBLE · INFERENCE · ATTEMPT.
ADMIT runs on the shard that owns the call, everything inside it on the shard that serves it, so
the fold is cut in two: ``admit`` and ``serve``.
ATTEMPT stages wrap each try of one backend; all others wrap the call once.

Runs of synchronous stages become a flat tuple called in line; a coroutine exists only where an
asynchronous stage is configured.

Invariants: the order is exactly the configured list; a list that contradicts the phases is an
error, never a silent sort; an ``after`` runs in reverse order and only when its ``before`` ran.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from tpo_mp.errors import ConfigError
from tpo_mp.types import Call, Phase, Reply

from .promise import Promise, run

Serve: TypeAlias = Callable[[Call], Awaitable[Reply]]
Named: TypeAlias = tuple[str, Any]


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
    def layer(call: Call) -> Awaitable[Reply]:
        return stage(call, inner)  # type: ignore[no-any-return]  # the Stage protocol's answer

    return layer


def _flatten(stages: list[Any], core: Serve) -> Serve:
    """Run synchronous stages in line round ``core``."""
    if not stages:
        return core
    befores = tuple(s.before for s in stages if hasattr(s, "before"))
    afters = tuple(s.after for s in reversed(stages) if hasattr(s, "after"))

    def flat(call: Call) -> Awaitable[Reply]:
        for before in befores:
            answered = before(call)
            if answered is not None:
                return _ready(answered)
        return core(call)

    if not afters:
        return flat

    def flat_with_afters(call: Call) -> Awaitable[Reply]:
        out: Promise[Reply] = Promise()

        def done(reply: Reply | None, error: BaseException | None) -> None:
            if reply is None:
                out.reject(error or RuntimeError("a stage answered nothing"))
                return
            try:
                for after in afters:
                    reply = after(call, reply) or reply
            except Exception as e:  # noqa: BLE001 - becomes the call's error
                out.reject(e)
            else:
                out.resolve(reply)

        out.cancel_with = run(flat(call), done)
        return out

    return flat_with_afters


def _ready(reply: Reply) -> Promise[Reply]:
    out: Promise[Reply] = Promise()
    out.resolve(reply)
    return out


class Chain:
    """The compiled pipeline of one config epoch."""

    __slots__ = ("admit", "epoch", "names", "serve")

    def __init__(
        self,
        stages: Sequence[Named],
        route: Callable[[Sequence[Any]], Serve],
        *,
        epoch: int = 0,
    ) -> None:
        """Compile.

        ``route`` receives the ATTEMPT stages and answers the innermost function, which picks
        backends and wraps each try in them.
        """
        check_order(stages)
        self.epoch = epoch
        self.names = tuple(name for name, _ in stages)
        admit = [s for _, s in stages if s.phase is Phase.ADMIT]
        inner = [s for _, s in stages if Phase.ADMIT < s.phase < Phase.ATTEMPT]
        attempt = [s for _, s in stages if s.phase is Phase.ATTEMPT]
        self.serve: Serve = fold(inner, route(attempt))
        self.admit: Callable[[Serve], Serve] = lambda core: fold(admit, core)
