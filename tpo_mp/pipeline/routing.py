"""From a call's model to one try of one backend.

Each ``[[routes]]`` entry becomes a strategy over its backends; the first entry whose patterns
match the model wins.  The strategies see only backends that serve the model.

Invariants: the table is built once per config; a model nobody serves is ``NotFound``.
Known weakness: decisions per model are remembered for at most 4 096 models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from inspect import iscoroutinefunction
from time import monotonic
from typing import Any, Protocol

from tpo_mp.dialects import native
from tpo_mp.errors import CircuitOpen, NotFound, Shed
from tpo_mp.types import Call, Reply

from .chain import Serve, fold
from .translate import speaking

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """A backend in a route: what it serves, and its try wrapped in the ATTEMPT stages."""

    name: str
    backend: Any
    models: tuple[str, ...]
    model_map: Mapping[str, str]
    apis: tuple[str, ...]
    weight: int
    attempt: Serve
    guards: tuple[Callable[[Call, str], bool], ...] = ()
    """Stages of the try that can tell beforehand that they would refuse it."""
    advice: tuple[Callable[[Call, str], bool], ...] = ()
    """Those that only say that another backend is better."""
    sampling: Mapping[str, object] = field(default_factory=dict)
    """See ``BackendConfig.native_sampling``."""

    def blocked(self, call: Call) -> bool:
        """Whether another backend should be asked, while there is one; changes nothing."""
        for guard in self.guards:
            if guard(call, self.name):
                return True
        for guard in self.advice:  # noqa: SIM110 - a generator costs more than the look
            if guard(call, self.name):
                return True
        return False

    def refused(self, call: Call) -> bool:
        """Whether asking it is in vain now."""
        return any(guard(call, self.name) for guard in self.guards)

    def infer(self, call: Call) -> Awaitable[Reply]:
        """One try."""
        call.backend = self.name
        call.attempts += 1
        return self.attempt(call)

    def serves(self, model: str) -> bool:
        """Whether this backend serves the model (glob, mapped name, or an adapter it has now)."""
        if model in self.model_map or any(
            p == "*" or p == model or fnmatchcase(model, p) for p in self.models
        ):
            return True
        adapters = getattr(self.backend, "adapters", None)
        return adapters is not None and model in adapters()


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[routes]]`` entry."""

    models: tuple[str, ...]
    strategy: Any
    targets: tuple[Target, ...]


class Named(Protocol):
    """What a configuration says of a backend's models."""

    @property
    def models(self) -> Sequence[str]: ...
    @property
    def model_map(self) -> Iterable[str]: ...


def named_models(backends: Iterable[Named]) -> list[str]:
    """The models that a configuration names, not counting those that globs stand for."""
    found: set[str] = set()
    for entry in backends:
        found.update(m for m in entry.models if not set(m) & set("*?["))
        found.update(entry.model_map)
    return sorted(found)


def wrap(
    backend: Any, attempt_stages: Sequence[Any], seen: Callable[[Serve], Serve] | None = None
) -> Serve:
    """One try of ``backend`` inside the ATTEMPT stages; ``seen`` wraps it inside of those."""
    infer: Serve = backend.infer
    direct = _in_task(infer) if iscoroutinefunction(infer) else infer
    asked = speaking(backend, direct)
    return fold(attempt_stages, asked if seen is None else seen(asked))


def suiting(serve: Serve, sampling: Mapping[str, object]) -> Serve:
    """Ask a backend with its own kind's sampling, whatever others of the route were told."""
    told = {**native.SAMPLING, **sampling}

    def ask(call: Call) -> Awaitable[Reply]:
        left = call.unsaid
        if left is not None:
            call.body, call.unsaid = native.filled(call.body, told, left)
        return serve(call)

    return ask


def _in_task(infer: Callable[[Call], Coroutine[Any, Any, Reply]]) -> Serve:
    """Clients written for asyncio ask for the current task: give a coroutine backend one.

    Its waiting is timed here, unless it does that itself.
    """

    async def timed(call: Call) -> Reply:
        call.upstream_at = asked_at = monotonic()
        reply = await infer(call)
        if call.first_byte_at < asked_at:
            call.first_byte_at = monotonic()
        return reply

    return lambda call: asyncio.get_running_loop().create_task(timed(call))


class Router:
    """Answers a call through the first matching rule."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._known: dict[str, Serve] = {}
        self._sampling: dict[str, Mapping[str, object]] = {}

    def serve(self, call: Call) -> Awaitable[Reply]:
        """Route one call; raises ``NotFound`` for a model nobody serves."""
        serve = self._known.get(call.model)
        if serve is None:
            serve = self._resolve(call.model)
        return serve(call)

    def knows(self, model: str) -> bool:
        """Whether any rule serves ``model``."""
        try:
            self._resolve(model)
        except (NotFound, Shed):
            return False
        return True

    def sampling(self, model: str) -> Mapping[str, object]:
        """What native requests for ``model`` are told: as its first backend wants it."""
        found = self._sampling.get(model)
        if found is None:
            if len(self._sampling) >= _REMEMBERED:
                self._sampling.clear()
            first = next((targets[0] for _, targets in self._matching(model)), None)
            found = self._sampling[model] = {} if first is None else first.sampling
        return found

    def _matching(self, model: str) -> Iterator[tuple[Any, tuple[Target, ...]]]:
        for rule in self._rules:
            if any(p == "*" or fnmatchcase(model, p) for p in rule.models):
                targets = tuple(t for t in rule.targets if t.serves(model))
                if targets:
                    yield rule.strategy, targets

    def _resolve(self, model: str) -> Serve:
        for strategy, targets in self._matching(model):
            return self._remember(model, _strategy(strategy, targets))
        raise NotFound(
            f"the model {model[:120]!r} does not exist or no backend serves it",
            reason="model_not_found",
            param="model",
        )

    def _remember(self, model: str, serve: Serve) -> Serve:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[model] = serve
        return serve


def _strategy(strategy: Any, targets: tuple[Target, ...]) -> Serve:
    if callable(strategy):

        def ask(call: Call) -> Awaitable[Reply]:
            return strategy(call, targets)  # type: ignore[no-any-return]  # the Route protocol

        return ask
    if len(targets) == 1:
        return targets[0].infer
    pick: Callable[[Call, Sequence[Target]], Target] = strategy.pick
    names = tuple(target.name for target in targets)

    def picked(call: Call) -> Awaitable[Reply]:
        call.choices = names
        try:
            return pick(call, targets).infer(call)
        except CircuitOpen:
            # Another process took the permit since the route looked, or all were blocked.
            tried = call.tried or ()
            left = [t for t in targets if t.name not in tried and not t.refused(call)]
            if not left:
                raise
            call.attempts -= 1  # nobody was asked
            return pick(call, left).infer(call)

    return picked


def guards_of(attempt_stages: Sequence[Any]) -> tuple[Callable[[Call, str], bool], ...]:
    """What the stages of a try can tell beforehand, but for those that only advise."""
    found = [stage for stage in attempt_stages if hasattr(stage, "blocked")]
    return tuple(stage.blocked for stage in found if not hasattr(stage, "advises"))


def advice_of(attempt_stages: Sequence[Any]) -> tuple[Callable[[Call, str], bool], ...]:
    """What those say that only advise."""
    return tuple(stage.blocked for stage in attempt_stages if hasattr(stage, "advises"))
