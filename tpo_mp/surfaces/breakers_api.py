"""Circuit breakers over HTTP: list, show, reset, trip.

A breaker's name is ``BACKEND`` (is it reached, does it take our key) or ``BACKEND:MODEL`` (does it
answer).  A reset of a backend resets its models too; a trip opens one breaker as its failures
would.  What is changed here is changed for every worker at once, and calls under way count no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson
from msgspec import Struct

from tpo_mp.dialects import breaker_shapes as shapes
from tpo_mp.dialects import native
from tpo_mp.errors import NotFound, Rejected, Shed
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.attribution import Blame
from tpo_mp.pipeline.breaker_board import BreakerBoard, BreakerView
from tpo_mp.pipeline.breaker_rows import BreakerRow, BreakerRows, KnownTargets
from tpo_mp.pipeline.circuit import Circuit, State, closed, opened, rules_of
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature

STAGE = "breaker"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class BreakersApi:
    """Routes about breakers."""

    def __init__(self, config: Config, env: Env) -> None:
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        all_, one = "/api/v1/circuit-breakers", "/api/v1/circuit-breakers/{breaker}"
        shown = "/api/v1/circuit-breakers/echo"
        record, after_reset = shapes.BreakerRecord, shapes.BreakersReset
        return [
            Endpoint("GET", all_, self.breakers, "native", access="admin",
                     outcomes=(Outcome("all of them", shapes.BreakerList),)),
            Endpoint("POST", one + "/trip", self.trip, "native", access="admin",
                     takes_json=False, errors=(409,), example_path=shown + "/trip",
                     outcomes=(Outcome("it is open", record),)),
            Endpoint("POST", one + "/reset", self.reset, "native", access="admin",
                     takes_json=False, example_path=shown + "/reset",
                     outcomes=(Outcome("it is closed", after_reset),)),
            # After the two whose paths it would take for names.
            Endpoint("GET", one, self.breaker, "native", access="admin", example_path=shown,
                     outcomes=(Outcome("its state and its numbers", record),)),
            Endpoint("POST", "/v1/circuit-breaker/reset", self.reset_named, "native",
                     access="admin", max_body_bytes=0, request=native.ResetRequest, example={},
                     errors=(404,),
                     outcomes=(Outcome("they are closed", after_reset),)),
        ]  # fmt: skip

    async def breakers(self, exchange: Exchange) -> None:
        """List every breaker of the host with its state."""
        now = self._env.clock()
        found = [_record(view, now) for view in await self._views()]
        body = orjson.dumps({"circuit_breakers": found, "count": len(found)})
        exchange.respond(200, body, extra=id_line(exchange.head))

    async def breaker(self, exchange: Exchange) -> None:
        """Show one breaker."""
        await self._show(exchange, exchange.head.params["breaker"])

    async def reset(self, exchange: Exchange) -> None:
        """Close a breaker for all workers and forget its failures; a backend's models with it."""
        await self._reset(exchange, exchange.head.params["breaker"])

    async def reset_named(self, exchange: Exchange) -> None:
        """Close the breaker named in the body for all workers, or every one."""
        await self._reset(exchange, native.decode_reset(exchange.body).name)

    async def trip(self, exchange: Exchange) -> None:
        """Open a breaker for all workers, as if it had failed too often."""
        options: Any = self._gateway.config.stages.get(STAGE)
        if options is None:
            said = "the pipeline has no breaker"
            raise Rejected(said, reason="breaker_off", status=409)
        name = exchange.head.params["breaker"]
        await self._find(name)
        fault = Blame.BACKEND if ":" in name else Blame.NETWORK
        turn = partial(opened, rules=rules_of(options), now=self._env.clock())
        self._change(name, fault, turn)
        await self._show(exchange, name)

    # -- inside ---------------------------------------------------------------------------------

    async def _views(self) -> list[BreakerView]:
        """All breakers, read beside the loop."""
        board = BreakerBoard(self._gateway.metrics_arena, self._env.ledger)
        more = [name for b, models in self._known().models.items()
                for name in (b, *(f"{b}:{m}" for m in models))]  # fmt: skip
        read = partial(board.views, self._env.clock(), more)
        return await asyncio.get_running_loop().run_in_executor(None, read)

    def _known(self) -> KnownTargets:
        return KnownTargets(self._gateway.config.backends)

    async def _find(self, name: str) -> tuple[BreakerView, list[BreakerView]]:
        """A breaker, and those of its models; raises ``NotFound``."""
        views = await self._views()
        found = next((view for view in views if view.name == name), None)
        if found is None:
            raise NotFound(f"no breaker {name[:120]!r}", reason="breaker_not_found", param="name")
        return found, [view for view in views if view.name.startswith(f"{name}:")]

    async def _show(self, exchange: Exchange, name: str) -> None:
        view, _ = await self._find(name)
        body = orjson.dumps(_record(view, self._env.clock()))
        exchange.respond(200, body, extra=id_line(exchange.head))

    async def _reset(self, exchange: Exchange, name: str | None) -> None:
        if name is None:
            chosen: Sequence[BreakerView] = await self._views()
        else:
            view, models = await self._find(name)
            chosen = [view, *models]
        now = self._env.clock()
        for view in chosen:
            for fault, c in view.circuits.items():
                if not c.calm or c.probe_failures:
                    self._change(view.name, fault, partial(closed, now=now))
            if view.bench_s:
                self._change(view.name, Blame.CAPACITY, partial(closed, now=now))
        names = [view.name for view in chosen]
        body = orjson.dumps({"reset": names, "count": len(names)})
        exchange.respond(200, body, extra=id_line(exchange.head))

    def _change(self, name: str, fault: Blame, turn: Callable[[Circuit], Circuit]) -> None:
        backend, _, model = name.partition(":")
        crowd = bool(model) and model not in self._known().models.get(backend, ())
        rows = BreakerRows(self._env)
        if rows.change(BreakerRow(name, fault, crowd), turn) is None:
            raise Shed("a worker that does not run holds it", reason="busy", retry_after_s=1)


def _record(view: BreakerView, now: float) -> dict[str, Any]:
    worst, tries = view.worst(now), view.failed + view.succeeded
    return {
        "name": view.name,
        "status": view.state(now),
        "failures": worst.failures,
        "probe_failures": worst.probe_failures,
        "next_probe_in_secs": round(view.next_probe_s(now), 3),
        "time_in_current_state": round(max(now - worst.since, 0.0), 3) if worst.since else None,
        "failed_total": view.failed,
        "successes": view.succeeded,
        "success_rate": round(view.succeeded / tries, 4) if tries else None,
        "paused_for_secs": round(view.bench_s, 3),
        "faults": {fault.value: _fault(c, now) for fault, c in view.circuits.items()},
    }


def _fault(c: Circuit, now: float) -> dict[str, Any]:
    return {
        "status": c.state(now),
        "failures": c.failures,
        "probe_failures": c.probe_failures,
        "next_probe_in_secs": 0.0 if c.prober else round(max(c.until - now, 0.0), 3),
        "probed_now": bool(c.prober) and c.state(now) is State.HALF_OPEN and c.until > now,
    }


FEATURE = Feature(Config, BreakersApi)
