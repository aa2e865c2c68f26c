"""Shapes of the audit's answers, for the description of the API."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class AuditEntry(Struct):
    """One finished call, as its record tells; instants are epoch seconds.

    ``cost_usd`` is null when no price of the model is known or no tokens were reported.
    ``aside_tokens`` are those of what else was asked for it (vectors of what was looked up), whose
    cost is in ``cost_usd``.
    ``guard`` is ``flag:CLASS`` or ``block:CLASS`` of a prompt that looked like an attack.
    ``input``, ``output`` and ``truncated`` are there only where ``[stages.audit]`` keeps text.
    """

    id: str
    client_request_id: str | None
    session_id: str | None
    timestamp: float
    started_at: float
    model_id: str
    backend: str
    tenant: str
    key_id: str
    method: str
    path: str
    status: int
    terminal: Literal["done", "failed", "shed", "expired", "cancelled", "crashed"]
    error: str | None
    stream: bool
    latency_ms: float
    first_byte_ms: float | None
    cache_hit: bool
    cache: str | None
    guard: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int
    aside_tokens: int
    cost_usd: float | None
    attempts: int
    shard: int
    bytes_in: int
    bytes_out: int
    peer: str
    tags: list[str]
    input: str | None = None
    output: list[str] | None = None
    locked: bool = False
    truncated: list[Literal["input", "output"]] = []


class AuditPage(Struct):
    """Finished calls, newest first; ``next`` continues where this page ends, which may be early.

    ``pending`` are further ones that could not be written yet and are on no page.
    """

    entries: list[AuditEntry]
    count: int
    next: str | None
    pending: int = 0


class AuditSums(Struct):
    """What calls come to; ``unpriced`` are those without a cost."""

    total_entries: int
    cache_hit_rate: float
    avg_latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    aside_tokens: int
    cost_usd: float
    unpriced: int


class AuditStats(AuditSums):
    """The same for all calls and for each model."""

    by_model: dict[str, AuditSums]
