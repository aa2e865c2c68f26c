"""How the backends are: what their tries came to, their breakers, their places.

Invariants: everything is read from what all processes of the host share (``shm.scores``, the
breakers' rows, the shares of places), so every worker answers the same, and what a worker counted
is still there when it is dead.  The list is as long as the configuration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from tpo_mp import registry
from tpo_mp.dialects import provider_shapes as shapes
from tpo_mp.errors import NotFound
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.allowance import instant
from tpo_mp.pipeline.breaker_board import BreakerBoard, BreakerView
from tpo_mp.pipeline.circuit import State
from tpo_mp.pipeline.ejection import row_of, unpack_ejection
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.loads import Loads, counts_load
from tpo_mp.pipeline.place_math import MANY
from tpo_mp.pipeline.place_report import share_name
from tpo_mp.pipeline.scoring import LATENCY_SLICES, Scoreboard, sum_up
from tpo_mp.pipeline.usual_times import UsualTimes, times_of
from tpo_mp.ports import BackendConfig, Cells, Env, Feature, Score
from tpo_mp.shm.standing import (
    AWAY,
    Fitness,
    drain_cells,
    drain_row,
    health_row,
    read_standing,
)
from tpo_mp.types import TryTally

BREAKER: Final = "breaker"
OUTLIER: Final = "outlier"
TIMEOUT: Final = "timeout"
DEGRADED_BELOW: Final = 0.9
"""A lower share of good answers in the last hour is not healthy, if there were enough of them."""
ENOUGH: Final = 10
_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class ProvidersApi:
    """``/api/v1/providers`` and ``/api/v1/load-balancer/stats``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        path = "/api/v1/providers"
        return [
            Endpoint("POST", path + "/{provider}/drain", self.drain, "native", access="admin",
                     takes_json=False, example_path=path + "/echo/drain",
                     outcomes=(Outcome("it gets no new calls", shapes.ProviderRecord),)),
            Endpoint("POST", path + "/{provider}/undrain", self.undrain, "native", access="admin",
                     takes_json=False, example_path=path + "/echo/undrain",
                     outcomes=(Outcome("it takes part again", shapes.ProviderRecord),)),
            Endpoint("GET", path, self.providers, "native", access="admin",
                     outcomes=(Outcome("all of them", shapes.ProviderList),)),
            Endpoint("GET", path + "/{provider}", self.provider, "native", access="admin",
                     example_path=path + "/echo",
                     outcomes=(Outcome("its state and its numbers", shapes.ProviderRecord),)),
            Endpoint("GET", "/api/v1/load-balancer/stats", self.balance, "native", access="admin",
                     outcomes=(Outcome("each backend's share", shapes.BalancerStats),)),
        ]  # fmt: skip

    async def providers(self, exchange: Exchange) -> None:
        """List the backends: how they answered in the last hour, breakers, places, last error."""
        found = await self._read(self._gateway.config.backends)
        told = shapes.ProviderList(found, len(found))
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    async def provider(self, exchange: Exchange) -> None:
        """Show how one backend is."""
        await self._show(exchange, self._named(exchange))

    async def drain(self, exchange: Exchange) -> None:
        """Give a backend no new calls, on any worker; those it has go on."""
        await self._turn(exchange, draining=True)

    async def undrain(self, exchange: Exchange) -> None:
        """Give a drained backend calls again."""
        await self._turn(exchange, draining=False)

    async def balance(self, exchange: Exchange) -> None:
        """Show what each backend was given, how it did, and what it has to do."""
        records = await self._read(self._gateway.config.backends)
        told = await asyncio.get_running_loop().run_in_executor(None, self._balance, records)
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    # -- inside ---------------------------------------------------------------------------------

    def _named(self, exchange: Exchange) -> BackendConfig:
        name = exchange.head.params["provider"]
        for entry in self._gateway.config.backends:
            if entry.name == name:
                return entry
        said = f"no provider {name[:120]!r}"
        raise NotFound(said, reason="provider_not_found", param="provider")

    async def _turn(self, exchange: Exchange, *, draining: bool) -> None:
        entry = self._named(exchange)
        cells = drain_cells(self._env.clock(), on=draining)

        def change(before: Cells) -> Cells:
            return before if draining and before[0] else cells

        self._env.ledger.update(drain_row(entry.name), change)
        said = "backend_drained" if draining else "backend_undrained"
        self._env.log.warning(said, backend=entry.name)
        await self._show(exchange, entry)

    async def _show(self, exchange: Exchange, entry: BackendConfig) -> None:
        told = (await self._read([entry]))[0]
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    async def _read(self, entries: Sequence[BackendConfig]) -> list[shapes.ProviderRecord]:
        """Look beside the loop: with many workers and backends that are milliseconds."""
        config = self._gateway.config
        board = Scoreboard(self._env.scores, config.backends)
        has_breaker = BREAKER in config.stage_order
        read = partial(self._records, entries, board, has_breaker=has_breaker)
        return await asyncio.get_running_loop().run_in_executor(None, read)

    def _records(
        self, entries: Sequence[BackendConfig], board: Scoreboard, *, has_breaker: bool
    ) -> list[shapes.ProviderRecord]:
        now = self._env.clock()
        views: list[BreakerView] = []
        if has_breaker:
            arena = self._gateway.metrics_arena
            more = [
                n for b, ms in board.known.models.items() for n in (b, *(f"{b}:{m}" for m in ms))
            ]
            views = BreakerBoard(arena, self._env.ledger).views(now, more)
        return [self._record(entry, board, views, now) for entry in entries]

    def _record(
        self, entry: BackendConfig, board: Scoreboard, views: Sequence[BreakerView], now: float
    ) -> shapes.ProviderRecord:
        name = entry.name
        scores = board.of(name)
        tries = self._tries([score for _, score in scores], now)
        mine = [v for v in views if v.name == name or v.name.startswith(f"{name}:")]
        shut = any(v.shut_by_models for v in mine if v.name == name)
        states = {v.name: v.state(now) for v in mine}
        own = State.OPEN if shut else states.get(name)
        ejection = unpack_ejection(self._env.ledger.look(row_of(name)))
        left_s = ejection.left_s(now) if OUTLIER in self._gateway.config.stage_order else 0.0
        look = self._env.ledger.look
        stands = read_standing(look(health_row(name)), look(drain_row(name)))
        state = stands.standing(now)
        since = stands.draining_since or stands.since
        models = [self._model(name, model, score, now) for model, score in scores]
        return shapes.ProviderRecord(
            name=name,
            kind=entry.kind,
            status=_status(own, list(states.values()), tries, state, ejected=left_s > 0),
            state=state.name.lower(),  # type: ignore[arg-type]  # Fitness's names
            state_reason=(stands.why or None) if state in AWAY else None,
            state_for_secs=round(max(now - since, 0.0), 1) if state else None,
            breaker=None if own is None else own.value,
            consecutive_failures=max((v.worst(now).failures for v in mine), default=None),
            ejected=ejection.why if left_s else None,  # type: ignore[arg-type]  # REASONS
            ejected_for_secs=round(left_s, 1),
            places=self._places(entry),
            models=models,
            **_fields(tries),
        )

    def _balance(self, records: Sequence[shapes.ProviderRecord]) -> shapes.BalancerStats:
        config, now = self._gateway.config, self._env.clock()
        board, loads = Scoreboard(self._env.scores, config.backends), Loads(self._env.shares)
        strategies = {route.strategy for route in config.routes}
        counted = any(counts_load(registry.find("routes", name)) for name in strategies)
        tallies = board.tallies(now)
        found: dict[str, shapes.BalancerEndpoint] = {}
        for record in records:
            name = record.name
            tally = tallies[name]
            found[name] = shapes.BalancerEndpoint(
                requests=tally.requests,
                failures=tally.failures,
                consecutive_failures=record.consecutive_failures,
                avg_latency_ms=tally.avg_latency_ms,
                # ``observe.health`` goes by the same.
                is_healthy=(
                    not tally.failing if record.breaker is None else record.breaker != "open"
                )
                and record.state not in ("starting", "down"),
                state=record.state,
                in_flight=loads.of(name).total() if counted else None,
            )
        return shapes.BalancerStats(
            total_requests=sum(one.requests for one in found.values()),
            unhealthy_count=sum(not one.is_healthy for one in found.values()),
            by_endpoint=found,
        )

    def _model(self, name: str, model: str, score: Score, now: float) -> shapes.ProviderModel:
        tries, learnt = self._tries([score], now), shapes.ProviderTimeout(None, None)
        options = self._gateway.config.stages.get(TIMEOUT)
        # Of one that was not asked nothing is learnt, and to look would take lines of the host's.
        if isinstance(options, UsualTimes) and tries.latency_ms.samples:
            learnt = self._learnt(options, f"{name}:{model}", now)
        return shapes.ProviderModel(model=model, learnt_timeout_secs=learnt, **_fields(tries))

    def _learnt(self, options: UsualTimes, target: str, now: float) -> shapes.ProviderTimeout:
        stream, whole = (
            options.limit_s(self._env.scores.of(times_of(target, stream=kind)), now)
            for kind in (True, False)
        )
        return shapes.ProviderTimeout(_rounded(stream), _rounded(whole))

    def _places(self, entry: BackendConfig) -> shapes.ProviderPlaces:
        fixed = entry.max_concurrent
        share = self._env.shares.of(share_name(entry.name)) if fixed else None
        if share is None or (fixed == "overload" and not share.limit):
            return shapes.ProviderPlaces(None, None, 0)
        limit = fixed if isinstance(fixed, int) else share.limit % MANY or None
        return shapes.ProviderPlaces(share.total(), limit, share.wanted)

    def _tries(self, scores: Sequence[Score], now: float) -> shapes.ProviderTries:
        hour = sum_up(score.recent(now) for score in scores)
        late = sum_up(score.recent(now, LATENCY_SLICES) for score in scores)
        good_at = max((score.last_good_at() for score in scores), default=0.0)
        bad_at, reason = max((score.last_bad() for score in scores), default=(0.0, ""))
        tried = hour.good + hour.bad
        return shapes.ProviderTries(
            successes=hour.good,
            failures=hour.bad,
            busy=hour.busy,
            refused=hour.refused,
            success_rate=round(hour.good / tried, 4) if tried else None,
            latency_ms=_latency(late),
            last_success_at=self._instant(good_at),
            last_failure_at=self._instant(bad_at),
            last_error=reason or None,
        )

    def _instant(self, at: float) -> str | None:
        # Both clocks are read at once: what took its time before is no part of the difference.
        return instant(time.time() - self._env.clock() + at) if at else None


def _latency(tally: TryTally) -> shapes.ProviderLatency:
    p50, p95, p99 = (
        None if (s := tally.quantile_s(share)) is None else round(s * 1e3, 1)
        for share in (0.5, 0.95, 0.99)
    )
    return shapes.ProviderLatency(sum(tally.times), p50, p95, p99)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _fields(tries: shapes.ProviderTries) -> dict[str, Any]:
    return {name: getattr(tries, name) for name in shapes.ProviderTries.__struct_fields__}


def _status(
    own: State | None,
    states: Sequence[State],
    tries: shapes.ProviderTries,
    stands: Fitness,
    *,
    ejected: bool,
) -> Literal["healthy", "degraded", "unhealthy", "unknown"]:
    """A shut one and one that is down or loads are unhealthy.

    One partly shut, left out, drained or failing often is degraded.
    """
    tried = tries.successes + tries.failures
    if own is State.OPEN or stands in AWAY or (tries.failures >= ENOUGH and not tries.successes):
        return "unhealthy"
    if ejected or stands is Fitness.DRAINING or any(state is not State.CLOSED for state in states):
        return "degraded"
    if tried >= ENOUGH and tries.success_rate is not None and tries.success_rate < DEGRADED_BELOW:
        return "degraded"
    return "healthy" if tried or stands is Fitness.READY else "unknown"


FEATURE = Feature(Config, ProvidersApi)
