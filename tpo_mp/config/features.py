"""Options of the features a config names: stages, surfaces, backends, routes.

A feature's ``Config`` is found through the registry by the feature's name, so nothing here lists
features.

Invariants: a listed stage order is kept or refused, never sorted; a feature that is known but not
built is left out with one warning, except a backend, without which calls would have nowhere to go.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from tpo_mp import registry
from tpo_mp.errors import ConfigError
from tpo_mp.ports import BackendConfig, Door, Feature
from tpo_mp.types import Phase

from . import catalog
from .check import Converter
from .problems import Problems, suggestion
from .text import Tree
from .tree import Defaults, RouteRule
from .values import Section


class RouteTable(Section, frozen=True, kw_only=True):
    """What every ``[[routes]]`` entry may have; its strategy's options stand beside it."""

    models: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="Model names or globs; the first route that matches wins."),
    ] = ("*",)
    strategy: Annotated[str, Meta(description="File name in routes/.")] = "weighted"
    backends: Annotated[
        tuple[str, ...], Meta(description="Names of backends, in order; omitted means all.")
    ] = ()


def find(door: Door, name: str, path: str, problems: Problems) -> Feature | None:
    """Find a feature, or note why it cannot be had."""
    if not catalog.is_built(door, name):
        known = catalog.known(door)
        why = "not built yet" if name in known else f"unknown; {suggestion(name, known)}"
        problems.add_value(path, name, why)
        return None
    try:
        return registry.find(door, name)
    except ImportError as error:
        problems.add_value(path, name, f"cannot be loaded: {error}")
    except ConfigError as error:
        problems.add(path, error.message)
    return None


def stages(tables: Tree, listed: tuple[str, ...] | None, converter: Converter) -> dict[str, Struct]:
    """Answer the options of every stage that runs, outermost first."""
    problems = converter.problems
    switched_off = {
        name for name in tables if not _enabled(tables[name], f"stages.{name}", problems)
    }
    configured = set(tables) - switched_off
    order = list(listed) if listed is not None else catalog.default_stages(configured)
    found: dict[str, Struct] = {}
    phases: list[tuple[int, str]] = []
    for name in dict.fromkeys([*order, *tables]):
        where = "pipeline.stages" if name in (listed or ()) else f"stages.{name}"
        if name in catalog.AT_THE_EDGE:
            if name in tables:
                problems.add(where, f"has no options here: they are in [{name}]")
            continue
        if not catalog.is_built("stages", name) and name in catalog.STAGES:
            if name in tables or name in (listed or ()):
                problems.warn(f"stages.{name}: not built yet, ignored")
            continue
        feature = find("stages", name, where, problems)
        if feature is None:
            continue
        table = {key: value for key, value in tables.get(name, {}).items() if key != "enabled"}
        options = converter.convert(table, feature.Config, f"stages.{name}")
        if name not in order and name in configured:
            problems.warn(f"stages.{name}: configured, but pipeline.stages does not list it")
        elif name in order and name not in switched_off and options is not None:
            found[name] = options
            if (phase := getattr(feature.build, "phase", None)) is not None:
                phases.append((phase, name))
    if listed is None:
        # Nobody gave an order: a stage from outside takes its place by its phase.
        place = {name: phase for phase, name in phases}
        found = dict(sorted(found.items(), key=lambda item: place.get(item[0], Phase.ATTEMPT)))
    else:
        _check_order(order, phases, problems)
    return found


def _enabled(table: Tree, path: str, problems: Problems) -> bool:
    enabled = table.get("enabled", True)
    if not isinstance(enabled, bool):
        problems.add_value(f"{path}.enabled", enabled, "expected bool")
    return enabled is not False


def surfaces(tables: Tree, converter: Converter, *, for_blob: bool) -> dict[str, Struct]:
    """Answer the options of every surface that is served: the shipped ones, then the others.

    ``for_blob`` imports none of ours that has no options to check; it has ``Defaults`` then.
    """
    problems = converter.problems
    found: dict[str, Struct] = {}
    for name in dict.fromkeys([*catalog.SURFACES, *tables]):
        if for_blob and not tables.get(name) and registry.is_ours("surfaces", name):
            found[name] = Defaults()
            continue
        feature = find("surfaces", name, f"surfaces.{name}", problems)
        if feature is None:
            continue
        table = tables.get(name, {})
        enabled = _enabled(table, f"surfaces.{name}", problems)
        options = {key: value for key, value in table.items() if key != "enabled"}
        made = converter.convert(options, feature.Config, f"surfaces.{name}")
        if made is not None and enabled:
            found[name] = made
    return found


def _check_order(order: list[str], phases: list[tuple[int, str]], problems: Problems) -> None:
    for name in {name for name in order if order.count(name) > 1}:
        problems.add("pipeline.stages", f"{name!r} is listed twice")
    for (outer_phase, outer), (inner_phase, inner) in itertools.pairwise(phases):
        if inner_phase < outer_phase:
            problems.add(
                "pipeline.stages", f"{inner!r} belongs to an outer phase: list it before {outer!r}"
            )


def backends(tables: list[Tree], converter: Converter) -> tuple[BackendConfig, ...]:
    """Answer the options of every backend."""
    problems = converter.problems
    found: dict[str, BackendConfig] = {}
    for index, table in enumerate(tables):
        path = f"backends[{index}]"
        kind = table.get("kind")
        if not isinstance(kind, str):
            problems.add(f"{path}.kind", f"required; known: {', '.join(catalog.BACKENDS)}")
            continue
        feature = find("backends", kind, f"{path}.kind", problems)
        if feature is None:
            continue
        options = converter.convert(table, feature.Config, path)
        if options is None:
            continue
        assert isinstance(options, BackendConfig)
        if options.name in found:
            problems.add_value(f"{path}.name", options.name, "another backend has this name")
        for where, said in options.problems():
            option = where.partition(".")[0]
            written = problems.origins.get(f"{path}.{option}", f"{path}.{option}")
            problems.add(written + where[len(option) :], said)
        found[options.name] = options
    return tuple(found.values())


def routes(
    tables: list[Tree], names: Mapping[str, Any], converter: Converter
) -> tuple[RouteRule, ...]:
    """Answer the route rules; none given means one for all models over all backends.

    ``names`` holds the names of all backends, those with problems of their own included.
    """
    problems = converter.problems
    rules = []
    for index, table in enumerate(tables or [{}]):
        path = f"routes[{index}]"
        own = {key: value for key, value in table.items() if key in RouteTable.__struct_fields__}
        plain = converter.convert(own, RouteTable, path)
        if plain is None:
            continue
        feature = find("routes", plain.strategy, f"{path}.strategy", problems)
        if feature is None:
            continue
        rest = {key: value for key, value in table.items() if key not in own}
        options = converter.convert(rest, feature.Config, path)
        for name in plain.backends:
            if name not in names:
                problems.add_value(
                    f"{path}.backends", name, f"no such backend; {suggestion(name, names)}"
                )
        rules.append(
            RouteRule(
                models=plain.models,
                strategy=plain.strategy,
                backends=plain.backends or tuple(names),
                options=options,
            )
        )
    return tuple(rules)
