"""Builds everything a config names: backends, stages, route table, model list.

Invariants: a pipeline is built whole before any call sees it; a failure leaves the old one serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from time import monotonic
from typing import Any

from tpo_mp import registry
from tpo_mp.config.prices import Prices
from tpo_mp.config.tree import Config, RouteRule
from tpo_mp.errors import ConfigError, TpoError
from tpo_mp.pipeline.chain import Chain
from tpo_mp.pipeline.loads import counted, counts_load
from tpo_mp.pipeline.routing import Router, Rule, Target, advice_of, guards_of, suiting, wrap
from tpo_mp.pipeline.scoring import scored
from tpo_mp.pipeline.stage_times import StageTimes
from tpo_mp.pipeline.standings import Standings
from tpo_mp.ports import BackendConfig, Env
from tpo_mp.types import Call, Reply

MODELS_FRESH_S = 60.0
MODELS_RETRY_S = 2.0
MOST_MODELS = 1000


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One config epoch, ready to serve."""

    epoch: int
    config: Config
    chain: Chain
    router: Router
    models: Models
    backends: Mapping[str, Any]
    prices: Prices

    def close(self) -> None:
        """Let go of idle upstream connections; open calls finish on theirs."""
        for backend in self.backends.values():
            backend.close()


def build(
    config: Config,
    env: Env,
    epoch: int,
    keep: Pipeline | None = None,
    given: Mapping[str, Any] | None = None,
) -> Pipeline:
    """Build a pipeline.

    Backends whose options, and prices, did not change are taken over from ``keep``; those named in
    ``given`` exist already.
    """
    given = given or {}
    prices = Prices(config.prices)
    env = replace(env, prices=prices, epoch=epoch)
    alike = keep is not None and keep.config.prices == config.prices
    old = {b.name: b for b in keep.config.backends} if keep is not None and alike else {}
    backends: dict[str, Any] = {}
    for entry in config.backends:
        if entry.name in given:
            backends[entry.name] = given[entry.name]
        elif keep is not None and old.get(entry.name) == entry:
            backends[entry.name] = keep.backends[entry.name]
        else:
            backends[entry.name] = registry.find("backends", entry.kind).build(entry, env)
    stages = [
        (name, registry.find("stages", name).build(config.stages[name], env))
        for name in config.stage_order
    ]
    for _, stage in stages:
        if hasattr(stage, "meet"):
            stage.meet(config.backends)
        if hasattr(stage, "meet_routes"):
            stage.meet_routes(config.routes)
    entries = {b.name: b for b in config.backends}
    routers: list[Router] = []
    strategies = {rule.strategy: registry.find("routes", rule.strategy) for rule in config.routes}
    loaded = any(counts_load(found) for found in strategies.values())
    standings = Standings(env, list(entries))
    models = Models(config.backends, backends)
    mixed = _mixed(config.routes, entries)

    def route(attempt: Sequence[Any]) -> Callable[[Call], Awaitable[Reply]]:
        targets = {
            name: _target(
                entry,
                backends[name],
                attempt,
                env,
                (standings, models),
                loaded=loaded,
                mixed=name in mixed,
            )
            for name, entry in entries.items()
        }
        for _, stage in stages:
            if hasattr(stage, "meet_targets"):
                stage.meet_targets(targets)
        rules = []
        for rule in config.routes:
            feature = strategies[rule.strategy]
            unknown = [name for name in rule.backends if name not in targets]
            if unknown:
                raise ConfigError(f"routes: no backend named {unknown[0]!r}")
            chosen = tuple(targets[name] for name in rule.backends)
            strategy = feature.build(rule.options or feature.Config(), env)
            if hasattr(strategy, "meet"):
                strategy.meet([entries[name] for name in rule.backends])
            rules.append(Rule(rule.models, strategy, chosen))
        routers.append(Router(rules))
        return routers[0].serve

    chain = Chain(stages, route, epoch=epoch, times=StageTimes(env.metrics, env.clock))
    return Pipeline(epoch, config, chain, routers[0], models, backends, prices)


def _target(
    entry: BackendConfig,
    backend: Any,
    attempt: Sequence[Any],
    env: Env,
    known: tuple[Standings, Models],
    *,
    loaded: bool,
    mixed: bool,
) -> Target:
    standings, models = known
    tried = wrap(backend, attempt, partial(scored, entry=entry, env=env))
    if loaded:
        tried = counted(tried, entry.name, env)
    guarded, sampling = standings.guarded(tried, entry.name), entry.native_sampling()
    return Target(
        entry.name,
        backend,
        entry.models,
        entry.model_map,
        entry.apis,
        entry.weight,
        suiting(guarded, sampling) if mixed else guarded,
        (standings.refuses, *guards_of(attempt)),
        (standings.advises, models.lacks, *advice_of(attempt)),
        sampling,
    )


def _mixed(routes: Iterable[RouteRule], entries: Mapping[str, BackendConfig]) -> set[str]:
    """Backends beside which a route has others that want other sampling of native requests."""
    found: set[str] = set()
    for rule in routes:
        wanted = [entries[name].native_sampling() for name in rule.backends if name in entries]
        if any(one != wanted[0] for one in wanted[1:]):
            found.update(rule.backends)
    return found


class Models:
    """What ``/v1/models`` lists: literal names, mapped names, and what glob backends report."""

    def __init__(self, entries: Sequence[BackendConfig], backends: Mapping[str, Any]) -> None:
        self._literal: list[str] = []
        self._asked: list[tuple[BackendConfig, Any]] = []
        for entry in entries:
            self._literal += [m for m in entry.models if not set(m) & set("*?[")]
            self._literal += list(entry.model_map)
            if any(set(m) & set("*?[") for m in entry.models):
                self._asked.append((entry, backends[entry.name]))
        self._adapted = [one.adapters for one in backends.values() if hasattr(one, "adapters")]
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._globs = {
            e.name: {m for m in e.models if not set(m) & set("*?[")} | set(e.model_map)
            for e, _ in self._asked
        }
        self._reported: dict[str, frozenset[str]] = {}
        """What a glob backend had last, when it answered."""
        self._asking: asyncio.Task[None] | None = None

    @property
    def configured(self) -> list[str]:
        """The names that the config itself says."""
        return self._literal

    def first(self) -> str | None:
        """The first literal name, for requests that name none."""
        return self._literal[0] if self._literal else None

    def lacks(self, call: Call, backend: str) -> bool:
        """Whether a backend that serves globs does not report the model and another one does.

        Nobody waits: what is not known yet, or was cut short, keeps no backend from being asked.
        """
        named = self._globs.get(backend)
        if named is None or call.model in named:
            return False
        if self._known.get(backend, (-1.0, []))[0] < monotonic():
            self._refresh()
        reported = self._reported.get(backend)
        if not reported or call.model in reported:
            return False
        return any(call.model in names for names in self._reported.values())

    def _refresh(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def names(self) -> list[str]:
        """Names in a stable order; an upstream that does not answer keeps its last good list."""
        now = monotonic()
        if any(self._known.get(e.name, (-1.0, []))[0] < now for e, _ in self._asked):
            await asyncio.shield(self._refresh())
        reported = [m for e, _ in self._asked for m in self._known.get(e.name, (0.0, []))[1]]
        adapted = [name for adapters in self._adapted for name in adapters()]
        return list(dict.fromkeys(self._literal + reported + adapted))

    def adapter(self, name: str) -> tuple[str, str] | None:
        """Of an adapter, the model it is for and where it lies."""
        found = (adapters().get(name) for adapters in self._adapted)
        return next((one for one in found if one is not None), None)

    async def _ask(self) -> None:
        async def ask(entry: BackendConfig, backend: Any) -> None:
            try:
                async with asyncio.timeout(5):
                    listed = await backend.list_models()
            except (TpoError, TimeoutError):
                kept = self._known.get(entry.name, (0.0, []))[1]
                self._known[entry.name] = (monotonic() + MODELS_RETRY_S, kept)
            else:
                few = len(listed) <= MOST_MODELS
                self._reported[entry.name] = frozenset(listed if few else ())
                hidden = set(entry.model_map.values())
                names = [m for m in listed if _matches(entry, m) and m not in hidden][:MOST_MODELS]
                self._known[entry.name] = (monotonic() + MODELS_FRESH_S, names)

        await asyncio.gather(*(ask(e, b) for e, b in self._asked))


def _matches(entry: BackendConfig, model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in entry.models)
