"""Every feature name there is or will be, in pipeline order, so that configs can name them early.

A known feature without a file yet loads with one warning; an unknown one is an error.  Whether a
feature is built is asked of the registry, so nothing here changes when one lands.

Invariants: ``STAGES`` follows the phases, outermost first; the shipped default is a part of it.
"""

from __future__ import annotations

from typing import Final

from tpo_mp import registry
from tpo_mp.ports import Door

STAGES: Final = (
    "trace", "audit", "auth", "deadline", "idempotency", "rate_limit", "guard", "token_budget",
    "session", "rag", "classify", "experiment",
    "fanout",
    "validate",
    "template", "text", "compress",
    "tools", "cache", "dedup", "near_dedup", "continuation", "retry",
    "admission", "breaker", "outlier", "timeout", "batch",
)  # fmt: skip
SHIPPED: Final = frozenset({"idempotency", "cache", "dedup", "admission", "retry", "breaker"})
"""Stages that run when no list is given and nothing is configured."""

ROUTES: Final = (
    "weighted", "round_robin", "least_loaded", "consistent_hash", "resource_aware", "prefix",
    "failover", "arbitrage", "tournament", "by_class", "bandit",
)  # fmt: skip
SURFACES: Final = (
    "openai_api", "responses_api", "anthropic_api", "native_api", "stream_api", "results_api",
    "batch_api", "budget_api", "cache_api", "dlq_api", "audit_api", "breakers_api", "limits_api",
    "providers_api", "status_api", "ops_api", "docs_api", "guard_api", "rag_api",
)  # fmt: skip
"""Surfaces that are served unless they are switched off; others are served once configured."""

BACKENDS: Final = ("echo", "openai", "anthropic", "vllm", "llama_cpp", "mlx", "simulator")

_KNOWN: Final[dict[Door, tuple[str, ...]]] = {
    "stages": STAGES, "routes": ROUTES, "backends": BACKENDS, "surfaces": SURFACES,
}  # fmt: skip

UNBUILT: Final = (
    "simulator.providers", "simulator.simulation", "simulator.telemetry",
    "observability.tracing_endpoint", "observability.monitoring",
    "auth.jwt_secret", "auth.max_key_age_days",
    "health.interval_s",
    "stages.rate_limit.adaptive", "stages.rate_limit.tiers", "stages.rate_limit.default_tier",
)  # fmt: skip
"""Settings that are known but do nothing yet; given, they are dropped with a warning."""


INERT: Final = ("distributed.nats_url", "distributed.node_id")
"""Settings that are checked, but that nothing acts upon yet; given, they are kept and warn."""


AT_THE_EDGE: Final = frozenset({"auth"})
"""Stages that act before a call is one; in a list they may stand anywhere."""


def is_built(door: Door, name: str) -> bool:
    """Whether the registry has this feature; imports nothing."""
    return registry.knows(door, name)


def known(door: Door) -> list[str]:
    """Names a config may use behind a door, built or not."""
    built = registry.names(door)
    return [*built, *(name for name in _KNOWN.get(door, ()) if name not in built)]


def default_stages(configured: set[str]) -> list[str]:
    """The chain when none is listed: what ships on, and what is configured, in order."""
    wanted = SHIPPED | configured
    ours = [name for name in STAGES if name in wanted]
    return ours + sorted(configured.difference(STAGES))
