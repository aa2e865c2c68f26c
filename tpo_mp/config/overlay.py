"""What the environment and the command line say, laid over the file.

``TPO_X`` sets ``[server] x``; a few names that others already use are aliases.  A flag beats the
environment, which beats the file.

Invariants: a value is read by the bounds of the field it sets, and a message names the variable or
flag it came from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from . import catalog, engines, providers
from .paths import get, put
from .problems import Problems
from .sections import ObservabilitySection, ServerSection
from .text import Tree
from .values import Section, is_loopback

VARIABLES: Final = {
    "SERVER_PORT": "server.port",
    "PORT": "server.port",
    "HOST": "server.host",
    "WORKERS": "server.workers",
    "METRICS_PORT": "server.ops_port",
    "MAX_CONCURRENT_REQUESTS": "server.max_open_calls",
    "MAX_CONCURRENCY": "server.max_open_calls",
    "TPO_LOG_FORMAT": "observability.log_format",
    "RUST_LOG_FORMAT": "observability.log_format",
    "TPO_LOG": "observability.log_level",
    "LOG_LEVEL": "observability.log_level",
    "RUST_LOG": "observability.log_level",
}
"""Aliases beside ``TPO_X``; of several for one setting the first that is set wins."""

FLAGS: Final = {
    "host": "server.host",
    "port": "server.port",
    "ops_port": "server.ops_port",
    "workers": "server.workers",
    "state_dir": "server.state_dir",
    "insecure": "server.insecure",
    "log_format": "observability.log_format",
    "log_level": "observability.log_level",
}

_LEVELS: Final = {"trace": "debug", "warn": "warning", "off": "error", "critical": "error"}
_SECTIONS: Final[dict[str, type[Section]]] = {
    "server": ServerSection,
    "observability": ObservabilitySection,
}


def environment(tree: Tree, env: Mapping[str, str], problems: Problems) -> None:
    """Lay the environment over the file's tree."""
    sources = {f"TPO_{name.upper()}": f"server.{name}" for name in ServerSection.__struct_fields__}
    done: set[str] = set()
    for name, path in (sources | VARIABLES).items():
        value = env.get(name, "").strip()
        if value and path not in done and _meant_for_us(name, value):
            done.add(path)
            _set(tree, path, _level(value) if path.endswith("log_level") else value, name, problems)
    for name, key in (("REDIS_URL", "redis_url"), ("NATS_URL", "nats_url")):
        distributed = tree.get("distributed")
        if env.get(name) and isinstance(distributed, dict):
            distributed.setdefault(key, {"env": name})
    if env.get("METRICS_API_KEY"):
        problems.warn("METRICS_API_KEY is not built yet: /metrics asks for no key")


def _meant_for_us(name: str, value: str) -> bool:
    """``HOST`` often holds a machine's name or a compiler triple; only an address is meant."""
    return name != "HOST" or value == "0.0.0.0" or is_loopback(value)


def _level(value: str) -> str:
    """Take the general level out of a filter such as ``info,http=debug``."""
    general = [part for part in value.lower().split(",") if "=" not in part]
    level = general[0].strip() if general else "info"
    return _LEVELS.get(level, level)


def flags(tree: Tree, given: Mapping[str, Any], env: Mapping[str, str], problems: Problems) -> None:
    """Lay the command line over everything else."""
    for name, path in FLAGS.items():
        value = given.get(name)
        if value is not None and value is not False:
            _set(tree, path, value, f"--{name.replace('_', '-')}", problems)
    if given.get("max_spend") is not None:
        _cap_spending(tree, given["max_spend"], problems)
    kind, model, base_url = (given.get(name) for name in ("backend", "model", "base_url"))
    origin = "--backend"
    for name, text in (("model", model), ("base-url", base_url), ("backend", kind)):
        if text and not str(text).isprintable():
            problems.add(f"--{name}", "holds characters that do not print")
    if kind is None and base_url:
        kind = "openai"
    if kind is None and not _serves(tree) and _provider(env):
        kind, model, origin = _provider(env), model or env.get("MODEL"), "PROVIDER"
    if kind:
        known = str(providers.kind_of(kind))
        tree.pop("engines", None)
        if model and not base_url and known in engines.KINDS and not providers.reached(known, env):
            tree["backends"] = []
            tree["engines"] = [{"name": known, "kind": known, "model": model}]
        else:
            tree["backends"] = [providers.describe(known, env, model=model, base_url=base_url)]
        tree.pop("routes", None)
        problems.origins["backends[0].kind"] = origin
        problems.origins["backends[0].base_url"] = "--base-url"
    elif model and (tree.get("backends") or tree.get("engines")):
        problems.add("--model", "needs --backend, because the file names its own backends")
    elif model:
        tree["backends"] = [providers.describe("echo", env, model=model)]


def _serves(tree: Tree) -> bool:
    return bool(tree.get("backends") or tree.get("engines"))


def _cap_spending(tree: Tree, dollars: float, problems: Problems) -> None:
    """``--max-spend``: a cap that would not be kept is refused, not ignored."""
    listed, table = get(tree, "pipeline.stages"), get(tree, "stages.token_budget")
    if isinstance(listed, list) and "token_budget" not in listed:
        problems.add("--max-spend", "needs token_budget in pipeline.stages")
    elif isinstance(table, dict) and table.get("enabled") is False:
        problems.add("--max-spend", "stages.token_budget is switched off in the file")
    elif not dollars > 0:
        problems.add_value("--max-spend", dollars, "expected dollars, more than 0")
    elif put(tree, "stages.token_budget.max_spend_usd", dollars):
        problems.origins["stages.token_budget.max_spend_usd"] = "--max-spend"
    else:
        problems.add("--max-spend", "stages.token_budget is not a table")


def _provider(env: Mapping[str, str]) -> str | None:
    """The kind that ``PROVIDER`` names; other programs use that variable for other things."""
    kind = str(providers.kind_of(env.get("PROVIDER", "")))
    return kind if kind in catalog.BACKENDS else None


def _set(tree: Tree, path: str, value: object, origin: str, problems: Problems) -> None:
    section, _, name = path.partition(".")
    (field,) = (f for f in msgspec.structs.fields(_SECTIONS[section]) if f.name == name)
    # What does not convert stays as it is, so that the section's own check words the problem.
    for kind in (field.type, int):
        with contextlib.suppress(msgspec.ValidationError):
            value = msgspec.convert(value, kind, strict=False)
            break
    if isinstance(value, str) and not value.isprintable():
        problems.add(path, f"{origin} holds characters that do not print")
    elif put(tree, path, value):
        problems.origins[path] = origin
