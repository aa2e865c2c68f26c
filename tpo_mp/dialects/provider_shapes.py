"""What the pages about providers say; see ``shapes``."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ProviderLatency(Struct):
    """Times to the first byte of the last ten to twenty minutes, as near as the buckets tell."""

    samples: int
    p50: float | None
    p95: float | None
    p99: float | None


class ProviderTries(Struct):
    """How tries ended in the last hour, and the latency of the answered ones."""

    successes: int
    failures: int
    busy: int
    refused: int
    success_rate: float | None
    latency_ms: ProviderLatency
    last_success_at: str | None
    last_failure_at: str | None
    last_error: str | None


class ProviderTimeout(Struct):
    """Seconds after which a try is given up, as far as that is learnt; null: it is not."""

    stream: float | None
    whole: float | None


class ProviderModel(ProviderTries):
    """One model of a provider; ``*`` are those that the configuration does not name."""

    model: str
    learnt_timeout_secs: ProviderTimeout


class ProviderPlaces(Struct):
    """Calls that a provider answers now, of how many at most, and how many wait; null: no limit."""

    in_use: int | None
    limit: int | None
    waiting: int


class ProviderRecord(ProviderTries):
    """One backend; its breaker's fields are null when the pipeline has no breaker.

    ``state`` is what control found by asking it, or `draining`; ``state_for_secs`` is null while
    that is unknown, and ``state_reason`` while there is nothing wrong.
    """

    name: str
    kind: str
    status: Literal["healthy", "degraded", "unhealthy", "unknown"]
    state: Literal["unknown", "starting", "ready", "draining", "down"]
    state_reason: str | None
    state_for_secs: float | None
    breaker: Literal["closed", "half_open", "open"] | None
    consecutive_failures: int | None
    ejected: Literal["failures", "slow"] | None
    ejected_for_secs: float
    places: ProviderPlaces
    models: list[ProviderModel]


class ProviderList(Struct):
    """Every backend of the configuration."""

    providers: list[ProviderRecord]
    count: int


class BalancerEndpoint(Struct):
    """Tries of one backend since the host started; its mean time is of the last ten minutes or so.

    It is as near as the buckets of its histogram tell.  ``consecutive_failures`` is null, and
    ``is_healthy`` goes by its last try, when the pipeline has no breaker.  ``in_flight`` is null
    when no route goes by load.
    """

    requests: int
    failures: int
    consecutive_failures: int | None
    avg_latency_ms: float | None
    is_healthy: bool
    state: Literal["unknown", "starting", "ready", "draining", "down"]
    in_flight: int | None


class BalancerStats(Struct):
    """What routes gave to which backends."""

    total_requests: int
    unhealthy_count: int
    by_endpoint: dict[str, BalancerEndpoint]
