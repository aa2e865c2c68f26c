"""``[simulator]`` and ``tpo-mp simulate``: a simulated provider described once, wherever it runs.

The table holds the options of kind ``simulator``; each backend of that kind has them unless it says
otherwise.  ``simulate`` serves one such backend and nothing else: no stage stands before it.

Invariants: a problem is told at the place that was written, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tpo_mp.errors import ConfigError
from tpo_mp.ports import BackendConfig

from .paths import ABSENT, get
from .problems import Problems
from .text import Tree, read_file

KIND: Final = "simulator"
NAME: Final = "simulator"
MOST_OPEN: Final = 10_000
"""Calls that ``simulate`` holds open at once, unless told otherwise."""
ADMIN: Final = "simulator_admin"
STEERING: Final = (ADMIN, "vllm_dev")
"""Surfaces that ``simulate`` serves of itself, and that ask for ``admin_api_key``."""
FLAGS: Final = {
    "seed": "seed", "latency_multiplier": "latency_multiplier", "no_latency": "latency_multiplier",
}  # fmt: skip
"""Flags of ``simulate`` and the options they set."""
OF_A_BACKEND: Final = frozenset(BackendConfig.__struct_fields__) - {"models"}
"""Options that ``[[backends]]`` has and ``[simulator]`` has not."""


def resolve(tree: Tree, given: Mapping[str, Any], base: Path | None, problems: Problems) -> None:
    """Fill backends of this kind from ``[simulator]``; with ``simulate``, make the one there is.

    What stands under a key ``file`` is looked for in ``base``, where the config itself is.
    """
    options = tree.pop("simulator", {})
    for flag, option in FLAGS.items():
        if given.get(flag) is not None:
            options[option] = 0 if flag == "no_latency" else given[flag]
            problems.origins[f"simulator.{option}"] = f"--{flag.replace('_', '-')}"
    if given.get("strict"):
        options["strict"] = True
        problems.origins["simulator.strict"] = "--strict"
    for name in ("replay", "replay_speed"):
        if given.get(name) is not None:
            options[name] = str(given[name]) if name == "replay" else given[name]
            problems.origins[f"simulator.{name}"] = f"--{name.replace('_', '-')}"
    _adapters(given.get("lora_modules") or (), options, problems)
    if given.get("rules") is not None:
        _rules(Path(given["rules"]), options, problems)
    if given.get("scenario") is not None:
        options["scenario"] = given["scenario"]
        problems.origins["simulator.scenario"] = "--scenario"
    _admin(tree, options, problems, alone=bool(given.get("simulate")))
    if given.get("simulate"):
        _alone(tree, problems)
        for surface in STEERING:
            tree.setdefault("surfaces", {}).setdefault(surface, {})
        tree.setdefault("server", {}).setdefault("max_open_calls", MOST_OPEN)
    for name in [name for name in options if name in OF_A_BACKEND]:
        problems.add(f"simulator.{name}", "belongs to [[backends]], not here")
        del options[name]
    entries = list(_simulators(tree.get("backends", ())))
    for table in [options, *(entry for _, entry in entries)]:
        _find_files(table, base)
    if options and not entries:
        problems.warn("simulator: no backend of kind 'simulator' uses it")
    for index, entry in entries:
        for name, value in options.items():
            if name not in entry:
                entry[name] = value
                path = f"simulator.{name}"
                problems.origins[f"backends[{index}].{name}"] = problems.origins.get(path, path)


def _rules(path: Path, options: Tree, problems: Problems) -> None:
    """The rules of a file, before those that stand in the config."""
    try:
        found = read_file(path)
    except ConfigError as error:
        problems.add("--rules", error.message)
        return
    listed = found.pop("rules", [])
    if found or not isinstance(listed, list):
        problems.add("--rules", f"{path}: expected a list named rules and nothing else")
        return
    own = options.get("rules", [])
    options["rules"] = listed + (own if isinstance(own, list) else [])
    problems.origins["simulator.rules"] = str(path)


def _adapters(given: Iterable[str], options: Tree, problems: Problems) -> None:
    """Adapters as NAME=PATH, each instead of the config's of that name."""
    for word in given:
        adapters = options.setdefault("adapters", {})
        name, _, path = word.partition("=")
        if not name or not path:
            problems.add("--lora-modules", f"{word!r} is not NAME=PATH")
        elif isinstance(adapters, dict):
            adapters[name] = {"path": path}


def _alone(tree: Tree, problems: Problems) -> None:
    for name in ("backends", "routes"):
        if tree.pop(name, None):
            problems.add(name, "tpo-mp simulate has one backend, described by [simulator]")
    tree["backends"] = [{"name": NAME, "kind": KIND}]
    surfaces = tree.setdefault("surfaces", {})
    if isinstance(surfaces, dict):
        surfaces.setdefault("gemini_api", {})
        surfaces.setdefault("vllm_api", {})
    stages = tree.setdefault("pipeline", {})
    if isinstance(stages, dict) and get(tree, "pipeline.stages") is ABSENT:
        stages["stages"] = []


def _admin(tree: Tree, options: Tree, problems: Problems, *, alone: bool) -> None:
    """``admin_api_key`` beside the other options is the surfaces', and asks for the first."""
    if "admin_api_key" in options:
        key = options.pop("admin_api_key")
        surfaces = tree.setdefault("surfaces", {})
        for surface in STEERING:
            if surface == ADMIN or surface in surfaces or alone:
                path = f"surfaces.{surface}.admin_api_key"
                problems.origins[path] = "simulator.admin_api_key"
                surfaces.setdefault(surface, {}).setdefault("admin_api_key", key)


def _find_files(table: Tree, base: Path | None) -> None:
    for key, value in table.items():
        if isinstance(value, dict):
            _find_files(value, base)
        elif key == "file" and isinstance(value, str) and base is not None:
            table[key] = str(base.absolute() / Path(value).expanduser())


def _simulators(backends: Iterable[Any]) -> Iterable[tuple[int, Tree]]:
    for index, entry in enumerate(backends):
        if isinstance(entry, dict) and entry.get("kind") == KIND:
            yield index, entry
