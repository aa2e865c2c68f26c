"""What budgets there are: options, the counts each call is held against, and their names.

Used by the stage that holds calls to them and by the surface that shows them.

Invariants: of one level the longest period comes first, since it is gone for longest; with nothing
given ``UNSAID`` holds; a limit of 0 is none.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta, Struct, structs

from .allowance import KEPT, Period, zone

_Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
NANO: Final = 1_000_000_000
"""Dollars are counted in billionths, so that sums are exact."""


class Periods(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens per period of the calendar; 0, or nothing given, is no limit."""

    hour: Annotated[_Tokens, Meta(description="Tokens per hour.")] = 0
    day: Annotated[_Tokens, Meta(description="Tokens per day.")] = 0
    month: Annotated[_Tokens, Meta(description="Tokens per month.")] = 0


class TenantPeriods(Periods, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of each tenant, and other ones of some tiers."""

    tiers: Annotated[
        dict[str, Periods],
        Meta(max_length=256, description="Budgets by a key's tier, in place of the others."),
    ] = {}


class SessionTokens(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of a session, until it is reset; 0 is no limit."""

    soft: Annotated[_Tokens, Meta(description="From here on the session is reported as over.")] = (
        80_000
    )
    hard: Annotated[_Tokens, Meta(description="No call may take the session past this.")] = 100_000

    def __post_init__(self) -> None:
        if 0 < self.hard < self.soft:
            raise ValueError("soft is more than hard")


class BudgetOptions(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"overall": "global"}
):
    """Budgets of tokens; with nothing given 4096 per request and 100 000 per hour on this host."""

    request: Annotated[
        _Tokens, Meta(description="Most tokens of one request, prompt and output; 0: no limit.")
    ] = 0
    default_output: Annotated[
        int,
        Meta(ge=0, le=10_000_000,
             description="Output set aside for an answer whose length the request leaves open."),
    ] = 1024  # fmt: skip
    time_zone: Annotated[
        str, Meta(max_length=64, description="IANA name of the zone whose clocks end the periods.")
    ] = "UTC"
    overall: Annotated[Periods | None, Meta(description="Budgets of the whole host.")] = None
    tenant: Annotated[
        TenantPeriods | None,
        Meta(description="Budgets of each tenant; without keys all callers are one."),
    ] = None
    session: Annotated[
        SessionTokens | None, Meta(description="Budget of each session, as `X-Session-Id` names it")
    ] = None
    max_spend_usd: Annotated[
        float,
        Meta(ge=0, le=1_000_000,
             description="Dollars this host may spend in all, by `[prices]`; 0: no limit."),
    ] = 0.0  # fmt: skip

    def __post_init__(self) -> None:
        zone(self.time_zone)


_UNSAID: Final = (4096, Periods(hour=100_000))
"""Tokens of a request and of the host, where the stage runs and nothing is limited."""


class Limit(NamedTuple):
    """One count that a call is held against; ``soft`` is only told."""

    level: str
    limit: int
    period: Period = ""
    soft: int = 0


class Levels:
    """All limits that some options mean."""

    def __init__(self, options: BudgetOptions) -> None:
        if not (options.request or options.overall or options.tenant or options.session
                or options.max_spend_usd):  # fmt: skip
            request, overall = _UNSAID
            options = structs.replace(options, request=request, overall=overall)
        self.request = options.request
        self.default_output = options.default_output
        session = options.session
        self.session = (
            Limit("session", session.hard, "", session.soft)
            if session is not None and (session.hard or session.soft)
            else None
        )
        self.overall = _limits("global", options.overall)
        self._tenant = _limits("tenant", options.tenant)
        tiers = options.tenant.tiers if options.tenant is not None else {}
        self._tiers = {tier: _limits("tenant", periods) for tier, periods in tiers.items()}
        each = [self._tenant, *self._tiers.values()]
        self._least: dict[str, int] = {}
        for limit in (limit for limits in each for limit in limits):
            self._least[limit.period] = min(self._least.get(limit.period, limit.limit), limit.limit)
        spend = round(options.max_spend_usd * NANO)
        self.spend = Limit("spend", spend) if spend else None

    def tenant(self, tier: str) -> tuple[Limit, ...]:
        """Limits of a tenant whose key has this tier."""
        return self._tiers.get(tier, self._tenant)

    def least(self, period: Period) -> int:
        """The lowest of all tenants' limits of a period that has one."""
        return self._least[period]


def _limits(level: str, periods: Periods | None) -> tuple[Limit, ...]:
    if periods is None:
        return ()
    each: tuple[tuple[Period, int], ...] = (
        ("month", periods.month), ("day", periods.day), ("hour", periods.hour)
    )  # fmt: skip
    return tuple(Limit(level, limit, period) for period, limit in each if limit)


def session_row(tenant: str, session: str) -> str:
    """The ledger's name for a session's count."""
    # The length keeps "a:b" of "c" apart from "a" of "b:c".
    return f"{KEPT}session:{len(tenant)}:{tenant}:{session}"


def tenant_row(tenant: str, period: Period) -> str:
    """That of a tenant's."""
    return f"{KEPT}tenant:{period}:{tenant}"


def overall_row(period: Period) -> str:
    """That of the host's."""
    return f"{KEPT}global:{period}"


SPEND_ROW: Final = f"{KEPT}spend"
