"""Backends that a config describes without ``[[backends]]``: by flag, worker name or cluster node.

Also the other names of backend kinds, and stand-ins: engines and services that speak the OpenAI
dialect are reached through ``openai`` until their own backend is built.

Invariants: a key from the environment is attached only when the provider's own address is used, so
a key never reaches an address somebody else chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from . import catalog
from .paths import ABSENT, take
from .problems import Problems
from .text import Tree

KINDS: Final = {
    "open_ai": "openai", "openai-compatible": "openai", "openai_compatible": "openai",
    "claude": "anthropic", "llama": "llama_cpp", "llama.cpp": "llama_cpp", "llamacpp": "llama_cpp",
    "llama-cpp": "llama_cpp", "sim": "simulator",
}  # fmt: skip
"""Other names of backend kinds."""

STRATEGIES: Final = {
    "weighted_round_robin": "weighted", "least_connections": "least_loaded",
}  # fmt: skip
"""Other names of route strategies."""


class Provider(NamedTuple):
    """Where a kind is reached when no URL is given: an address, or the variable that holds it."""

    base_url: str
    url_variable: str = ""
    key_variable: str = ""


PROVIDERS: Final = {
    "openai": Provider("https://api.openai.com/v1", key_variable="OPENAI_API_KEY"),
    "anthropic": Provider("https://api.anthropic.com/v1", key_variable="ANTHROPIC_API_KEY"),
    "llama_cpp": Provider("http://localhost:8080/v1", "LLAMA_CPP_URL"),
    "vllm": Provider("http://localhost:8000/v1", "VLLM_URL"),
    "mlx": Provider("http://localhost:8080/v1"),
}

STAND_INS: Final = frozenset({"vllm", "llama_cpp", "mlx"})
"""Kinds whose servers speak the OpenAI dialect too."""


def kind_of(name: object) -> object:
    """Answer the canonical kind."""
    if not isinstance(name, str):
        return name
    lower = name.lower()
    return KINDS.get(lower, lower if lower in catalog.BACKENDS else name)


def describe(
    kind: str, env: Mapping[str, str], *, model: str | None = None, base_url: str | None = None
) -> Tree:
    """Write the ``[[backends]]`` entry that a provider name, a model and a URL stand for."""
    entry: Tree = {"name": kind, "kind": kind}
    if model:
        entry["models"] = [model]
    elif kind == "echo":
        entry["models"] = ["echo"]
    provider = PROVIDERS.get(kind)
    if base_url:
        entry["base_url"] = base_url
    elif provider is not None:
        given = env.get(provider.url_variable, "") if provider.url_variable else ""
        entry["base_url"] = _with_path(given) if given else provider.base_url
        if provider.key_variable in env:
            entry["api_key"] = {"env": provider.key_variable}
    return entry


def reached(kind: str, env: Mapping[str, str]) -> bool:
    """Whether the environment says where a kind is reached."""
    provider = PROVIDERS.get(kind)
    return provider is not None and bool(provider.url_variable and env.get(provider.url_variable))


def _with_path(url: str) -> str:
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{scheme}://{rest}" if "/" in rest else f"{scheme}://{rest}/v1"


def resolve(tree: Tree, env: Mapping[str, str], problems: Problems) -> None:
    """Turn workers, cluster nodes, balancing and the admin key into their canonical tables."""
    found = [*_workers(tree, env, problems), *_nodes(tree, problems)]
    if found and "backends" in tree:
        problems.add("backends", "workers or cluster_nodes name backends too; keep one of them")
    elif found:
        tree["backends"] = found
    _balancing(tree, problems)
    _admin_key(tree, problems)
    _ranks(tree, problems)
    for entry in _tables(tree.get("backends")):
        if "kind" in entry:
            entry["kind"] = kind_of(entry["kind"])
    for entry in _tables(tree.get("routes")):
        if isinstance(entry.get("strategy"), str):
            entry["strategy"] = STRATEGIES.get(entry["strategy"], entry["strategy"])


def _ranks(tree: Tree, problems: Problems) -> None:
    """Make each rank of a data-parallel engine a backend, in routes too."""
    found: list[Tree] = []
    renamed: dict[str, list[str]] = {}
    for index, entry in enumerate(_tables(tree.get("backends"))):
        ranks = entry.pop("ranks", None)
        if ranks is None:
            found.append(entry)
        elif not isinstance(ranks, list) or not ranks or "base_url" in entry:
            said = "expected a list of the ranks' URLs, instead of base_url"
            problems.add_value(f"backends[{index}].ranks", ranks, said)
        else:
            name = str(entry.get("name", ""))
            renamed[name] = [f"{name}-{n}" for n in range(len(ranks))]
            found += [
                {**entry, "name": own, "base_url": url}
                for own, url in zip(renamed[name], ranks, strict=True)
            ]
    if renamed:
        tree["backends"] = found
    for route in _tables(tree.get("routes")):
        names = route.get("backends")
        if isinstance(names, list) and renamed:
            route["backends"] = [own for n in names for own in renamed.get(str(n), [n])]


def stand_in(tree: Tree, problems: Problems) -> None:
    """Reach backends and routes that are not built yet through ones that are, with a warning."""
    for index, entry in enumerate(_tables(tree.get("backends"))):
        kind = str(entry.get("kind"))
        if kind in STAND_INS and "base_url" in entry and not catalog.is_built("backends", kind):
            problems.warn(f"backends[{index}]: kind {kind!r} is not built yet; 'openai' stands in")
            entry["kind"] = "openai"
    for index, entry in enumerate(_tables(tree.get("routes"))):
        strategy = entry.get("strategy", "weighted")
        if strategy in catalog.ROUTES and not catalog.is_built("routes", strategy):
            problems.warn(
                f"routes[{index}]: strategy {strategy!r} is not built yet; 'weighted' stands in"
            )
            plain: Tree = {key: entry[key] for key in ("models", "backends") if key in entry}
            entry.clear()
            entry.update(plain, strategy="weighted")


def _workers(tree: Tree, env: Mapping[str, str], problems: Problems) -> list[Tree]:
    """``[stages.inference] worker = …`` and ``[workers.NAME]``, merged when they name one kind."""
    entries: dict[str, Tree] = {}
    worker = take(tree, "stages.inference.worker")
    model = take(tree, "stages.inference.model")
    timeout_ms = take(tree, "stages.inference.timeout_ms")
    if worker is not ABSENT:
        kind = str(kind_of(worker))
        entries[kind] = describe(kind, env, model=None if model is ABSENT else str(model))
        problems.origins["backends[0].kind"] = "stages.inference.worker"
        if isinstance(timeout_ms, int | float):
            entries[kind]["timeouts"] = {"total_s": timeout_ms / 1000}
            problems.origins["backends[0].timeouts.total_s"] = "stages.inference.timeout_ms"
    elif model is not ABSENT or timeout_ms is not ABSENT:
        problems.add("stages.inference", "worker is missing: it names the backend")
    for name, details in _named_workers(tree, problems):
        if isinstance(details, dict):
            kind = str(kind_of(name))
            entries.setdefault(kind, describe(kind, env)).update(_details(name, details))
        else:
            problems.add_value(f"workers.{name}", details, "expected a table")
    return list(entries.values())


def _named_workers(tree: Tree, problems: Problems) -> list[tuple[str, Any]]:
    """``[workers.NAME]`` tables; a plain ``workers = N`` is the number of processes."""
    workers = tree.pop("workers", {})
    if isinstance(workers, dict):
        return list(workers.items())
    server = tree.setdefault("server", {})
    if "workers" in server:
        problems.add("workers", "server.workers is the same setting; keep one of them")
    else:
        server["workers"] = workers
        problems.origins["server.workers"] = "workers"
    return []


def _details(name: str, details: Tree) -> Tree:
    """Rename the keys of one ``[workers.NAME]``; unknown ones stay and are refused as such."""
    entry = dict(details)
    if "model" in entry:
        entry["models"] = [entry.pop("model")]
    if "api_base_url" in entry:
        entry["base_url"] = entry.pop("api_base_url")
    if "host" in entry:
        host, port = entry.pop("host"), entry.pop("port", 8080)
        entry.setdefault("base_url", _with_path(f"http://{host}:{port}"))
    return entry | {"name": str(kind_of(name))}


_INTERVAL: Final = "health.interval_s"


def _nodes(tree: Tree, problems: Problems) -> list[Tree]:
    """``cluster_nodes`` of a gateway's YAML: each is asked whether it is well."""
    nodes = tree.pop("cluster_nodes", [])
    interval_s = take(tree, _INTERVAL) if nodes else ABSENT
    entries = []
    for index, node in enumerate(_tables(nodes)):
        node = dict(node)
        if node.pop("specs", None) is not None:
            problems.warn("cluster_nodes: specs have no effect; set weight instead")
        host, port = node.pop("host", ""), node.pop("port", 8000)
        entry = {"kind": "openai", "name": node.pop("node_id", ""), **node}
        entry.setdefault("base_url", f"http://{host}:{port}/v1")
        checked: Tree = {"enabled": True}
        if interval_s is not ABSENT:
            checked["interval_s"] = interval_s
            written = problems.origins.get(_INTERVAL, _INTERVAL)
            problems.origins[f"backends[{index}].health.interval_s"] = written
        entry.setdefault("health", checked)
        problems.origins[f"backends[{index}].name"] = f"cluster_nodes[{index}].node_id"
        problems.origins[f"backends[{index}].base_url"] = f"cluster_nodes[{index}].host"
        entries.append(entry)
    return entries


def _balancing(tree: Tree, problems: Problems) -> None:
    strategy = take(tree, "load_balancing.strategy")
    enabled = take(tree, "load_balancing.enabled")
    if strategy is ABSENT or enabled is False:
        return
    if "routes" in tree:
        problems.add("load_balancing.strategy", "routes is the same setting; keep one of them")
    else:
        tree["routes"] = [{"strategy": strategy}]
        problems.origins["routes[0].strategy"] = "load_balancing.strategy"


def _admin_key(tree: Tree, problems: Problems) -> None:
    for path in ("admin_api_key", "server.admin_api_key"):
        secret = take(tree, path)
        if secret is ABSENT:
            continue
        auth = tree.setdefault("auth", {})
        keys = auth.setdefault("keys", []) if isinstance(auth, dict) else None
        if isinstance(keys, list):
            problems.origins[f"auth.keys[{len(keys)}].secret"] = path
            keys.append({"id": "admin", "secret": secret, "admin": True})


def _tables(value: Any) -> list[Tree]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
