"""Answers about budgets."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class SessionBudget(Struct):
    """What a session has used of its budget; a limit of 0 is none, instants are RFC 3339."""

    session_id: str
    tokens_used: int
    soft_limit_tokens: int
    hard_limit_tokens: int
    soft_limit_reached: bool
    hard_limit_reached: bool
    last_updated: str | None
    last_reset: str | None
    request_count: int


class BudgetReset(Struct):
    """A session whose budget starts anew."""

    status: Literal["reset"]
    session_id: str


class BudgetState(Struct):
    """One budget as it stands: tokens, or dollars where ``unit`` says so.

    ``used`` includes what is set aside for calls that run; ``period`` is empty for one that never
    starts anew by itself.
    """

    level: Literal["tenant", "global", "spend"]
    period: Literal["hour", "day", "month", ""]
    unit: Literal["tokens", "usd"]
    limit: float
    used: float
    remaining: float
    requests: int
    resets_at: str | None


class BudgetList(Struct):
    """The budgets that the caller's requests are held to."""

    request_limit_tokens: int
    budgets: list[BudgetState]
