"""File, environment and flags to one checked ``Config``.

The steps, in order: parse → other spellings → environment → flags → what is not built yet →
sections → features → rules between them.  Problems are gathered over all of them and raised
together as one ``ConfigError`` with a line each.

Invariants: flags beat the environment, which beats the file, which beats defaults; nothing is
fetched or resolved over the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from . import aliases, catalog, engines, features, overlay, providers, rules, simulating
from .check import Converter
from .paths import ABSENT, get, take
from .prices import PricesSection
from .problems import Problems, suggestion
from .sections import (
    AuthSection,
    DistributedSection,
    ObservabilitySection,
    PipelineSection,
    RingsSection,
    ServerSection,
    StoreSection,
    SupervisorSection,
)
from .text import Tree, read_file
from .tree import Config

S = TypeVar("S", bound=Struct)

SECTIONS: Final[dict[str, type[Struct]]] = {
    "server": ServerSection,
    "supervisor": SupervisorSection,
    "pipeline": PipelineSection,
    "rings": RingsSection,
    "store": StoreSection,
    "observability": ObservabilitySection,
    "auth": AuthSection,
    "distributed": DistributedSection,
    "prices": PricesSection,
}
_LISTS: Final = ("backends", "routes", "engines")
_TABLES: Final = ("stages", "surfaces")
"""Tables of tables, each named after a feature's file."""


def load(
    path: Path | None, flags: Mapping[str, Any], env: Mapping[str, str], *, for_blob: bool = False
) -> Config:
    """Load a config; raises ``ConfigError`` whose message has one line per problem.

    ``flags`` holds what the command line gave (``None`` = not given): host, port, ops_port,
    workers, backend, model, base_url, state_dir, log_format, log_level, insecure, simulate, seed,
    latency_multiplier, no_latency, scenario, lora_modules.  ``for_blob`` leaves to who reads the
    blob what takes an import and cannot be wrong; every start waits for this one.
    """
    tree = read_file(path) if path is not None else {}
    base = path.parent if path is not None else None
    return build(tree, flags, env, base, for_blob=for_blob)


def server_of(path: Path | None, flags: Mapping[str, Any], env: Mapping[str, str]) -> ServerSection:
    """Read ``[server]`` alone, for commands that only look for a running gateway."""
    problems = Problems()
    tree = read_file(path) if path is not None else {}
    _require_shapes(tree, problems)
    aliases.resolve(tree, problems)
    overlay.environment(tree, env, problems)
    overlay.flags(tree, flags, env, problems)
    for key in catalog.UNBUILT:
        take(tree, key)
    server = Converter(env, None, problems).convert(tree.get("server", {}), ServerSection, "server")
    problems.stop()
    assert server is not None
    return server


def build(
    tree: Tree, flags: Mapping[str, Any], env: Mapping[str, str], base: Path | None, *,
    for_blob: bool = False,
) -> Config:  # fmt: skip
    """Check a parsed tree, which is used up; ``base`` is where secret files are looked for."""
    problems = Problems()
    _require_shapes(tree, problems)
    aliases.resolve(tree, problems)
    providers.resolve(tree, env, problems)
    overlay.environment(tree, env, problems)
    overlay.flags(tree, flags, env, problems)
    aliases.report_leftovers(tree, problems)
    _warn_of_unbuilt(tree, problems)
    simulating.resolve(tree, flags, base, problems)
    engines.resolve(tree, flags.get("engine_ports") or {}, problems)
    _refuse_unknown_sections(tree, problems)
    providers.stand_in(tree, problems)
    if not tree.get("backends"):
        tree["backends"] = [providers.describe("echo", env)]
    config = _assemble(tree, Converter(env, base, problems), for_blob=for_blob)
    problems.stop()
    assert config is not None
    return config


def _assemble(tree: Tree, converter: Converter, *, for_blob: bool) -> Config | None:
    problems = converter.problems

    def section(name: str, kind: type[S]) -> S | None:
        return converter.convert(tree.get(name, {}), kind, name)

    server = section("server", ServerSection)
    supervisor = section("supervisor", SupervisorSection)
    pipeline = section("pipeline", PipelineSection)
    rings = section("rings", RingsSection)
    store = section("store", StoreSection)
    observability = section("observability", ObservabilitySection)
    auth = section("auth", AuthSection)
    prices = section("prices", PricesSection)
    distributed = None
    if "distributed" in tree:
        distributed = section("distributed", DistributedSection)
    stages = features.stages(
        tree.get("stages", {}), pipeline.stages if pipeline else None, converter
    )
    surfaces = features.surfaces(tree.get("surfaces", {}), converter, for_blob=for_blob)
    own = engines.convert(tree.get("engines", []), converter)
    backends = features.backends(tree["backends"], converter)
    names = {str(table["name"]): None for table in tree["backends"] if "name" in table}
    routes = features.routes(tree.get("routes", []), names, converter)
    if server and auth:
        rules.bind(server, auth, problems)
        rules.admin_key(server, auth, problems)
        rules.ports(server, problems)
        rules.edge(server, problems)
        for index, backend in enumerate(backends):
            rules.upstream(index, backend, server, problems)
    if auth:
        rules.keys(auth, problems)
        rules.folders(stages, auth, problems)
    if distributed:
        rules.redis(distributed, problems)
    if store:
        rules.encryption(store, problems)
    rules.failover(routes, stages, problems)
    rules.near(stages, problems)
    rules.rerank(stages, backends, problems)
    rules.collected(stages, backends, problems)
    rules.continuing(stages, backends, problems)
    if supervisor:
        rules.supervision(supervisor, problems)
    if not (server and supervisor and pipeline and rings and store and observability):
        return None
    if not (auth and prices):
        return None
    return Config(
        server=server,
        supervisor=supervisor,
        pipeline=pipeline,
        rings=rings,
        store=store,
        observability=observability,
        distributed=distributed,
        auth=auth,
        prices=prices,
        backends=backends,
        engines=own,
        routes=routes,
        stages=stages,
        stage_order=tuple(stages),
        surfaces=surfaces,
        ops_port_given="ops_port" in tree.get("server", {}),
        warnings=tuple(problems.warnings),
    )


def _require_shapes(tree: Tree, problems: Problems) -> None:
    """Take out what is no table where a table is expected, so that later steps need not ask."""
    for name in [*SECTIONS, *_TABLES, "simulator"]:
        if not isinstance(tree.get(name, {}), dict):
            problems.add_value(name, tree.pop(name), "expected a table")
    for name in _LISTS:
        entries = tree.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            problems.add_value(name, tree.pop(name), f"expected a list of tables, as [[{name}]]")
    for door in _TABLES:
        for name, table in list(tree.get(door, {}).items()):
            if not isinstance(table, dict):
                problems.add_value(f"{door}.{name}", tree[door].pop(name), "expected a table")


def _warn_of_unbuilt(tree: Tree, problems: Problems) -> None:
    for path in catalog.UNBUILT:
        if get(tree, path) is not ABSENT:
            take(tree, path)
            problems.warn(f"{problems.origins.get(path, path)}: not built yet, ignored")
    for path in catalog.INERT:
        if get(tree, path) is not ABSENT:
            problems.warn(f"{path}: not built yet, ignored")


def _refuse_unknown_sections(tree: Tree, problems: Problems) -> None:
    known = [*SECTIONS, *_LISTS, *_TABLES, "simulator"]
    for name in [name for name in tree if name not in known]:
        del tree[name]
        roots = [path.partition(".")[0] for path in aliases.FAMILIES]
        problems.add(name, f"unknown section; {suggestion(name, {*known, *roots})}")
