"""``GET /api/v1/rate-limiter/stats``: what is used of rate limits, and how many were refused.

The counts are the host's quotas, so every worker answers the same.  They are read a few rows at a
time, so that the loop goes on in between.

Invariants: an answer is bounded (``limit``), and so is the work of one turn of the loop.
Known weakness: what changes while an answer is put together may be seen or not; of a tenant whose
keys have several tiers the windows are not shown, since each key has others.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec import Struct

from tpo_mp.dialects import limit_shapes as shapes
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.buckets import HELD_AT, LET_IN, REFUSED, Bucket, LimitSet
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.limits import LEVELS, Counted, LimitLevels, RateOptions, counted
from tpo_mp.ports import Env, Feature
from tpo_mp.types import QuotaReading

STAGE: Final = "rate_limit"
ROWS_AT_ONCE: Final = 64
_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class LimitsApi:
    """The route about rate limits."""

    def __init__(self, config: Config, env: Env) -> None:
        self._quotas = env.quotas
        self._clock = env.clock
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The route of this surface."""
        self._gateway = gateway
        return [
            Endpoint("GET", "/api/v1/rate-limiter/stats", self.stats, "native", access="admin",
                     outcomes=(Outcome("what is used of each limit", shapes.LimiterStats),)),
        ]  # fmt: skip

    async def stats(self, exchange: Exchange) -> None:
        """List what is limited on this host, and what is left of each limit.

        ``?level=`` one of the levels, ``?limit=`` at most so many (1000), ``?after=`` the last
        answer's ``next``.
        """
        query = given.parameters(exchange.head)
        level = given.choice(query, "level", LEVELS)
        most = given.whole(query, "limit", 1_000, least=1, most=10_000)
        row = given.whole(query, "after", 0, least=0, most=1 << 32)
        levels, tiers = self._levels()
        models: list[shapes.ModelAllowance] = []
        found: list[shapes.LimitedName] = []
        ends_at = self._quotas.rows if levels is not None else 0
        while levels is not None and row < ends_at and len(found) < most:
            now = self._clock()
            for reading in self._quotas.readings(row, ROWS_AT_ONCE):
                what = counted(reading.name)
                if what is None or level not in (None, what.level):
                    continue
                limits = levels.of(what.level, self._tier(levels, tiers, what.tenant))
                one = _named(what, reading, limits, now)
                found.append(one)
                if what.level == "model":
                    models.append(_model(one))
                if len(found) == most:
                    row = reading.row + 1
                    break
            else:
                row += ROWS_AT_ONCE
                await asyncio.sleep(0)
        told = shapes.LimiterStats(models, found, len(found), row if row < ends_at else None)
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    def _levels(self) -> tuple[LimitLevels | None, dict[str, set[str]]]:
        """The limits that new calls are held to (``None``: none), and the tiers of each tenant."""
        options = self._gateway.config.stages.get(STAGE)
        tiers: dict[str, set[str]] = {}
        for key in self._gateway.config.auth.keys:
            tiers.setdefault(key.tenant or key.id, set()).add(key.tier)
        return LimitLevels(options) if isinstance(options, RateOptions) else None, tiers

    def _tier(
        self, levels: LimitLevels, tiers: dict[str, set[str]], tenant: str | None
    ) -> str | None:
        """The one tier of a tenant, if it has one; who needs no key has none of the tiers."""
        known = tiers.get(tenant or "", {""})
        return next(iter(known)) if len(known) == 1 else None


def _named(
    what: Counted, reading: QuotaReading, limits: LimitSet | None, now: float
) -> shapes.LimitedName:
    cells = reading.cells
    return shapes.LimitedName(
        level=what.level,  # type: ignore[arg-type]  # one of LEVELS
        name=what.of,
        tenant=what.tenant,
        requests_allowed=max(int(cells[LET_IN]) - reading.unspent, 0),
        requests_denied=int(cells[REFUSED]),
        in_flight=max(reading.held - reading.unspent, 0),
        concurrent=(limits.concurrent or None) if limits is not None else None,
        windows=[_window(b, reading, now) for b in limits.buckets] if limits is not None else [],
    )


def _window(bucket: Bucket, reading: QuotaReading, now: float) -> shapes.LimitedWindow:
    tokens = bucket.what == "tokens"
    ahead = reading.unspent_tokens if tokens else reading.unspent
    drained = max(now - reading.cells[HELD_AT], 0.0) * bucket.per_s
    used = max(reading.cells[bucket.cell] - ahead - drained, 0.0)
    return shapes.LimitedWindow(
        unit="tokens" if tokens else "requests",
        period=bucket.period,
        limit=bucket.limit,
        capacity=bucket.room,
        remaining=round(max(bucket.room - used, 0.0), 3),
    )


def _model(one: shapes.LimitedName) -> shapes.ModelAllowance:
    left, capacity = 0.0, 0
    requests = [window for window in one.windows if window.unit == "requests"]
    if requests:
        least = min(requests, key=lambda window: window.remaining)
        left, capacity = least.remaining, least.capacity
    elif one.concurrent is not None:
        left, capacity = float(max(one.concurrent - one.in_flight, 0)), one.concurrent
    return shapes.ModelAllowance(
        one.name, one.requests_allowed, one.requests_denied, left, capacity
    )


FEATURE = Feature(Config, LimitsApi)
