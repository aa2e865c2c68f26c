"""Budgets over HTTP: what a session, a tenant and the host have used; a session's can start anew.

A tenant sees its own sessions and its own budgets; the host's are for admins.

Invariants: the numbers are those of the host's quotas at some moment of the request, so every
worker answers the same; a session that never used anything does not exist (404), and neither does
another tenant's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from tpo_mp.dialects import budget_shapes as shapes
from tpo_mp.errors import NotFound
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.http.head import Head
from tpo_mp.pipeline.allowance import FOREVER, Calendar, Span, instant, shown
from tpo_mp.pipeline.budgets import (
    NANO,
    SPEND_ROW,
    BudgetOptions,
    Levels,
    Limit,
    overall_row,
    session_row,
    tenant_row,
)
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.purses import CALLS_LET_IN, CHANGED_AT, SINCE, USED
from tpo_mp.ports import Cells, Env, Feature
from tpo_mp.types import Quota

STAGE = "token_budget"
_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class BudgetApi:
    """``/api/v1/sessions/{id}/budget`` and ``/api/v1/budgets``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._quotas = env.quotas
        self._wall = time.time

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            *Endpoint(
                "GET", "/api/v1/sessions/{id}/budget", self.session, "native",
                example_path="/api/v1/sessions/$SESSION_ID/budget",
                outcomes=(Outcome("what the session has used", shapes.SessionBudget),),
            ).at("/v1/sessions/{id}/budget"),
            *Endpoint(
                "POST", "/api/v1/sessions/{id}/budget/reset", self.reset, "native",
                takes_json=False, example_path="/api/v1/sessions/$SESSION_ID/budget/reset",
                outcomes=(Outcome("it starts anew", shapes.BudgetReset),),
            ).at("/v1/sessions/{id}/budget/reset"),
            Endpoint("GET", "/api/v1/budgets", self.budgets, "native",
                     outcomes=(Outcome("the budgets", shapes.BudgetList),)),
        ]  # fmt: skip

    def session(self, exchange: Exchange) -> None:
        """Show what a session has used of its budget."""
        limit, name = self._found(exchange)
        cells = self._look(name, crowd=True)
        if not cells[3]:
            raise _unknown()
        since, used, calls, at = cells
        told = shapes.SessionBudget(
            session_id=exchange.head.params["id"],
            tokens_used=int(used),
            soft_limit_tokens=limit.soft,
            hard_limit_tokens=limit.limit,
            soft_limit_reached=0 < limit.soft <= used,
            hard_limit_reached=0 < limit.limit <= used,
            last_updated=instant(at),
            last_reset=instant(since),
            request_count=int(calls),
        )
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    def reset(self, exchange: Exchange) -> None:
        """Let a session's budget start anew; calls that run now are not counted in it."""
        _, name = self._found(exchange)
        if not self._look(name, crowd=True)[3]:
            raise _unknown()
        now = self._wall()

        def anew(quota: Quota) -> None:
            quota.void()
            quota.cells[SINCE] = quota.cells[CHANGED_AT] = now
            quota.cells[USED] = quota.cells[CALLS_LET_IN] = 0.0

        self._quotas.update(name, anew, crowd=True)
        told = shapes.BudgetReset("reset", exchange.head.params["id"])
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    def budgets(self, exchange: Exchange) -> None:
        """List the budgets of the caller's tenant, and to admins those of the host."""
        levels, calendar = self._levels()
        found = [] if levels is None else list(self._states(exchange.head, levels, calendar))
        told = shapes.BudgetList(0 if levels is None else levels.request, found)
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    # -- inside ---------------------------------------------------------------------------------

    def _look(self, name: str, *, crowd: bool = False) -> Cells:
        """A count, without what is only held ahead; zeros: there is none.  Raises ``Shed``."""
        found = self._quotas.look(name, crowd=crowd)
        return (0.0, 0.0, 0.0, 0.0) if found is None else found.spent()

    def _levels(self) -> tuple[Levels | None, Calendar]:
        """The budgets that new calls are held to; ``None``: there are none."""
        options = self._gateway.config.stages.get(STAGE)
        if not isinstance(options, BudgetOptions):
            return None, Calendar("UTC", self._wall)
        return Levels(options), Calendar(options.time_zone, self._wall)

    def _found(self, exchange: Exchange) -> tuple[Limit, str]:
        """A session's limit and the ledger's name for its count, whether it has one or not."""
        levels, _ = self._levels()
        if levels is None or levels.session is None:
            raise _unknown()
        head = exchange.head
        return levels.session, session_row(self._gateway.tenant(head), head.params["id"])

    def _states(
        self, head: Head, levels: Levels, calendar: Calendar
    ) -> Iterator[shapes.BudgetState]:
        tenant = self._gateway.tenant(head)
        for limit in levels.tenant(head.principal.tier):
            span = calendar.now(limit.period)
            yield self._state(limit, tenant_row(tenant, limit.period), span)
        if not head.principal.admin:
            return
        for limit in levels.overall:
            yield self._state(limit, overall_row(limit.period), calendar.now(limit.period))
        if levels.spend is not None:
            yield self._state(levels.spend, SPEND_ROW, FOREVER)

    def _state(self, limit: Limit, name: str, span: Span) -> shapes.BudgetState:
        used, calls = shown(self._look(name), span)
        per = NANO if limit.level == "spend" else 1
        return shapes.BudgetState(
            level=limit.level,  # type: ignore[arg-type]  # a session's is not listed
            period=limit.period,
            unit="usd" if limit.level == "spend" else "tokens",
            limit=limit.limit / per,
            used=used / per,
            remaining=max(limit.limit - used, 0.0) / per,
            requests=int(calls),
            resets_at=instant(span.end),
        )


def _unknown() -> NotFound:
    return NotFound("no such session has used any of a budget", reason="session_not_found")


FEATURE = Feature(Config, BudgetApi)
