"""Answers about rate limits."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ModelAllowance(Struct):
    """A model's limit; ``current_tokens`` of ``capacity`` requests may come in at once.

    It is the window with the least room, or the places where there is none.
    """

    model_id: str
    requests_allowed: int
    requests_denied: int
    current_tokens: float
    capacity: int


class LimitedWindow(Struct):
    """One window: ``limit`` per ``period``, ``capacity`` at once, of which so much is left."""

    unit: Literal["requests", "tokens"]
    period: str
    limit: int
    capacity: int
    remaining: float


class LimitedName(Struct):
    """What one session, tenant, model or the host has used of its limits.

    ``concurrent`` is how many requests may be under way (null: any number), ``in_flight`` how many
    of them are counted.  Names longer than the host keeps are cut.
    """

    level: Literal["session", "tenant", "model", "global"]
    name: str
    tenant: str | None
    requests_allowed: int
    requests_denied: int
    in_flight: int
    concurrent: int | None
    windows: list[LimitedWindow]


class LimiterStats(Struct):
    """Some of what is limited now; ``next`` is what ``after`` must be for more (null: all seen)."""

    models: list[ModelAllowance]
    limits: list[LimitedName]
    count: int
    next: int | None
