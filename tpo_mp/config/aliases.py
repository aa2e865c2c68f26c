"""Other spellings of settings: the one table that lets the reference documents' files load.

A row moves a value to its canonical place, converting it if need be; giving both spellings is an
error.  What is no plain move (a worker becomes a backend, nodes become backends) is in
``providers``.

Invariants: a row's target is canonical, so one pass is enough; nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .paths import ABSENT, get, put, take
from .problems import Problems, suggestion
from .text import Tree

COMPRESSED_FROM_BYTES: Final = 1024


class Alias(NamedTuple):
    """One row: the other spelling, the canonical one, and how the value changes."""

    old: str
    new: str
    convert: Callable[[Any], Any] = lambda value: value
    note: str = ""


def _from_ms(value: object) -> object:
    return value / 1000 if isinstance(value, int | float) and value is not True else value


def _ms(old: str, new: str) -> Alias:
    return Alias(old, new, _from_ms, "milliseconds become seconds")


def _origins(enabled: object) -> object:
    return (["*"] if enabled else []) if isinstance(enabled, bool) else enabled


def _compression(enabled: object) -> object:
    return COMPRESSED_FROM_BYTES * enabled if isinstance(enabled, bool) else enabled


def _blocks(value: object) -> object:
    return ("block" if value else "flag") if isinstance(value, bool) else value


def _tls(value: object) -> object:
    """``{cert, key}`` as the reference spells it."""
    names = {"cert": "cert_file", "key": "key_file"}
    return {names.get(k, k): v for k, v in value.items()} if isinstance(value, dict) else value


_EDGES: Final = {
    "rag": "rag_to_assemble",
    "assemble": "assemble_to_inference",
    "inference": "inference_to_post",
    "post": "post_to_stream",
    "stream": "stream_output",
}

PIPELINE_TOML: Final = (
    Alias("resilience.retry_attempts", "stages.retry.attempts"),
    _ms("resilience.retry_base_ms", "stages.retry.base_s"),
    _ms("resilience.retry_max_ms", "stages.retry.max_s"),
    Alias("resilience.circuit_breaker_threshold", "stages.breaker.threshold"),
    Alias("resilience.circuit_breaker_timeout_s", "stages.breaker.open_s"),
    Alias("resilience.circuit_breaker_success_rate", "stages.breaker.success_rate"),
    Alias("rate_limits.enabled", "stages.rate_limit.enabled"),
    Alias("rate_limits.requests_per_second", "stages.rate_limit.global.rps"),
    Alias("rate_limits.burst_capacity", "stages.rate_limit.global.burst"),
    Alias("deduplication.enabled", "stages.dedup.enabled"),
    Alias("deduplication.window_s", "stages.cache.ttl_s"),
    Alias("deduplication.max_entries", "stages.dedup.max_entries"),
    Alias("semantic_dedup.enabled", "stages.near_dedup.enabled"),
    Alias("semantic_dedup.similarity_threshold", "stages.near_dedup.similarity_threshold"),
    Alias("semantic_dedup.window_secs", "stages.near_dedup.window_s"),
    Alias("stages.guard.risk_threshold", "stages.guard.block_score"),
    Alias("stages.guard.flag_threshold", "stages.guard.flag_score"),
    Alias("stages.guard.block_oversized", "stages.guard.oversize", _blocks, "true is block"),
    _ms("stages.rag.timeout_ms", "stages.rag.timeout_s"),
    Alias("stages.inference.adaptive_timeout_enabled", "stages.timeout.enabled"),
    _ms("stages.inference.adaptive_timeout_min_ms", "stages.timeout.floor_s"),
    Alias("stages.inference.max_tokens", "surfaces.native_api.max_tokens"),
    Alias("stages.inference.temperature", "surfaces.native_api.temperature"),
    Alias("observability.metrics_port", "server.ops_port"),
    *(Alias(f"channel_sizes.{edge}", f"pipeline.edges.{edge}") for edge in _EDGES.values()),
    *(Alias(f"{s}_channel_capacity", f"pipeline.edges.{edge}") for s, edge in _EDGES.items()),
    *(
        Alias(
            f"stages.{'post_process' if stage == 'post' else stage}.channel_capacity",
            f"pipeline.edges.{edge}",
        )
        for stage, edge in _EDGES.items()
    ),
)

GATEWAY_YAML: Final = (
    Alias("rate_limiting.enabled", "stages.rate_limit.enabled"),
    Alias("rate_limiting.adaptive", "stages.rate_limit.adaptive"),
    Alias("rate_limiting.tiers", "stages.rate_limit.tiers"),
    Alias("rate_limiting.default_tier", "stages.rate_limit.default_tier"),
    Alias("load_balancing.health_check_interval", "health.interval_s"),
    Alias("load_balancing.max_retries", "stages.retry.attempts"),
    Alias("security.request_timeout", "stages.deadline.timeout_s"),
    Alias("security.max_request_size", "server.max_body_bytes"),
    Alias("security.ssl", "server.tls", _tls),
    Alias("monitoring", "observability.monitoring"),
)

_SERVER_KEYS: Final = {
    "max_concurrent_requests": "server.max_open_calls",
    "request_timeout": "simulator.request_timeout_s",
    "keepalive_timeout": "server.idle_timeout_s",
    "shutdown_timeout": "server.drain_s",
}

SIMULATOR: Final = (
    Alias("host", "server.host"),
    Alias("port", "server.port"),
    *(
        row
        for at in ("", "server.")
        for row in (
            Alias(f"{at}enable_cors", "server.cors.origins", _origins, "true is any origin"),
            Alias(
                f"{at}enable_compression",
                "server.compression_min_bytes",
                _compression,
                f"true is {COMPRESSED_FROM_BYTES}",
            ),
            Alias(f"{at}tls_config", "server.tls", _tls, "cert and key are file names"),
        )
    ),
    *(Alias(old, new) for old, new in _SERVER_KEYS.items()),
    *(Alias(f"server.{old}", new) for old, new in _SERVER_KEYS.items()),
    *(
        Alias(name, f"simulator.{name}")
        for name in ("providers", "simulation", "scenarios", "telemetry")
    ),
)

ALIASES: Final = (*PIPELINE_TOML, *GATEWAY_YAML, *SIMULATOR)

WITHOUT_EFFECT: Final = {
    "stages.inference.inference_workers": "processes are set by server.workers",
    "rate_limiting.cleanup_interval": "limits clean up after themselves",
    "default_models": "models are named by their backends",
}
"""Keys of the reference documents that have nothing to set here; given, they warn."""

ALWAYS_ON: Final = tuple(f"stages.{s}" for s in ("assemble", "inference", "post_process", "stream"))
"""Stages of the reference that are no feature of their own: they cannot be switched off."""

SPECIAL: Final = {
    "stages.inference": ("worker", "model", "timeout_ms"),
    "load_balancing": ("enabled", "strategy"),
}
"""Keys that ``providers`` reads."""


_REPLAY: Final = "stages.cache.enabled"


def resolve(tree: Tree, problems: Problems) -> None:
    """Move every other spelling to its canonical place, in the tree itself."""
    if get(tree, "deduplication.enabled") is False and get(tree, _REPLAY) is ABSENT:
        # The reference's one feature is two here.
        put(tree, _REPLAY, False)
        problems.origins[_REPLAY] = "deduplication.enabled"
    for alias in ALIASES:
        value = take(tree, alias.old)
        if value is not ABSENT:
            _move(tree, alias, value, problems)
    for path, reason in WITHOUT_EFFECT.items():
        if take(tree, path) is not ABSENT:
            problems.warn(f"{path} has no effect: {reason}")
    for stage in ALWAYS_ON:
        enabled = take(tree, f"{stage}.enabled")
        if enabled not in (ABSENT, True):
            problems.add_value(f"{stage}.enabled", enabled, "this stage is always on")


def _move(tree: Tree, alias: Alias, value: object, problems: Problems) -> None:
    if get(tree, alias.new) is not ABSENT:
        other = problems.origins.get(alias.new, alias.new)
        problems.add(alias.old, f"{other} is the same setting; keep one of them")
    elif put(tree, alias.new, alias.convert(value)):
        problems.origins[alias.new] = alias.old
    else:
        problems.add(alias.old, f"{alias.new.rpartition('.')[0]} is not a table")


def _families() -> dict[str, set[str]]:
    families: dict[str, set[str]] = {}
    for path in [*(alias.old for alias in ALIASES), *WITHOUT_EFFECT]:
        parent, _, key = path.rpartition(".")
        families.setdefault(parent, set()).add(key)
    for parent, keys in SPECIAL.items():
        families.setdefault(parent, set()).update(keys)
    for stage in ALWAYS_ON:
        families.setdefault(stage, set()).add("enabled")
    for canonical in ("", "server", "observability", "stages.guard", "stages.rag"):
        del families[canonical]
    return families


FAMILIES: Final = _families()
"""Tables that exist only as another spelling, with the keys they may hold."""


def report_leftovers(tree: Tree, problems: Problems) -> None:
    """Refuse what is left in a table that exists only as another spelling, and remove it."""
    for path, keys in FAMILIES.items():
        table = take(tree, path)
        if isinstance(table, dict):
            for key in table:
                problems.add(f"{path}.{key}", f"unknown key; {suggestion(key, keys)}")
        elif table is not ABSENT:
            problems.add_value(path, table, "expected a table")
