"""The simulator's own remote control: what it does is changed and asked for while it runs.

Served by ``tpo-mp simulate``, and by a gateway whose configuration names this surface.
One answer tells of the whole host, whichever worker gives it, and a change is seen by the next
request on every worker.

Invariants: without ``admin_api_key`` only this machine may ask, and no browser; with it, whoever
sends it in ``X-Admin-Key``.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from time import time
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

import orjson
from msgspec import Meta, Struct, structs

from tpo_mp import registry
from tpo_mp.config.simulating import KIND
from tpo_mp.config.values import Secret
from tpo_mp.dialects import shapes
from tpo_mp.dialects.body import parse
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Handler, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator import live_options, scenario_switch, stats
from tpo_mp.simulator.admission import Doorkeeper
from tpo_mp.simulator.live import LiveState, Proposed, change, composed, read_state
from tpo_mp.simulator.own_ledger import OwnLedger
from tpo_mp.simulator.read_ahead import unread

T = TypeVar("T")
LIMIT: Final = Parameter("limit", "How many entries at most [1000].", int)
KEY: Final = Parameter("X-Admin-Key", "The `admin_api_key`, when there is one.", place="header")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use it."""

    admin_api_key: Annotated[
        Secret | None,
        Meta(description="What X-Admin-Key must say; without it only this machine may ask."),
    ] = None


class SimulatorAdmin:
    """Routes under ``/admin``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._door = Doorkeeper(config.admin_api_key, "/admin")
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        options = Outcome("options, and the version of the state", shapes.SimulatorConfig)
        done = Outcome("it is done", shapes.SimulatorDone)
        scenarios = Outcome("all of them, and the active one", shapes.SimulatorScenarios)
        return [
            self._route("GET", "/admin/config", self.config, options),
            self._route("POST", "/admin/config", self.configure, options, request=dict[str, Any],
                        example={"seed": 7}, errors=(400, 413)),
            self._route("GET", "/admin/stats", self.stats,
                        Outcome("counts since they were set back", shapes.SimulatorStats)),
            self._route("POST", "/admin/stats/reset", self.reset_stats, done, takes_json=False),
            self._route("GET", "/admin/journal", self.journal,
                        Outcome("the newest requests", shapes.SimulatorJournal),
                        parameters=(LIMIT,), errors=(400, 503)),
            self._route("DELETE", "/admin/journal", self.clear_journal, done, errors=(503,)),
            self._route("GET", "/admin/scenarios", self.scenarios, scenarios),
            *(
                self._route("POST", f"/admin/scenarios/{{name}}/{verb}", handler, done,
                            takes_json=False, errors=(404,),
                            example_path=f"/admin/scenarios/full_outage/{verb}")
                for verb, handler in (("activate", self.activate), ("deactivate", self.deactivate))
            ),
            self._route("GET", "/admin/chaos/status", self.scenarios, scenarios),
            self._route("POST", "/admin/chaos/enable", self.enable, done, takes_json=False),
            self._route("POST", "/admin/chaos/disable", self.disable, done, takes_json=False),
            self._route("POST", "/admin/rate-limits/reset", self.reset_limits, done,
                        takes_json=False),
        ]  # fmt: skip

    def _route(
        self, method: str, template: str, handler: Handler, outcome: Outcome, **more: Any
    ) -> Endpoint:
        def guarded(exchange: Exchange) -> object:
            self._door.admit(exchange)
            return handler(exchange)

        guarded.__doc__ = handler.__doc__
        errors = (401, *more.pop("errors", ()))
        reads = (KEY, *more.pop("parameters", ()))
        return Endpoint(
            method, template, guarded, "ops",
            outcomes=(outcome,), parameters=reads, errors=errors, access="admin", **more,
        )  # fmt: skip

    # -- options ------------------------------------------------------------------------------

    async def config(self, exchange: Exchange) -> None:
        """Show the options in force."""
        self._send_config(exchange, *await self._state())

    async def configure(self, exchange: Exchange) -> None:
        """Change options as a JSON merge patch of `[simulator]`; all of it, or nothing."""
        patch = parse(exchange.body)
        configs = live_options.simulators(self._gateway.config.backends)
        await self._state(patch if isinstance(patch, dict) else {})
        after = await change(
            self._env.live,
            lambda state: live_options.changed(state, patch, configs, self._try),
        )
        self._send_config(exchange, *after)

    # -- what happened ------------------------------------------------------------------------

    async def stats(self, exchange: Exchange) -> None:
        """Show how many requests there were, and how they went."""
        _, state = read_state(self._env.live)
        families = await _aside(self._gateway.metrics_arena.collect)
        started_at = self._env.clock() - time() + self._gateway.plane.started_at_wall_ms / 1e3
        found = stats.since(state.stats, families, self._env.clock(), started_at)
        _send(exchange, {"status": "success", **found})

    async def reset_stats(self, exchange: Exchange) -> None:
        """Let the statistics begin anew."""
        families = await _aside(self._gateway.metrics_arena.collect)
        baseline, _, _ = stats.totals(families, self._env.clock())
        await self._done(
            exchange, "the statistics begin anew",
            lambda state: structs.replace(state, stats=baseline),
        )  # fmt: skip

    async def journal(self, exchange: Exchange) -> None:
        """List the newest requests, the last one last."""
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", 1000, least=1, most=100_000)
        options = self._options((await self._state())[1])
        enabled = any(one["journal"]["enabled"] for one in options.values())
        entries = self._env.journal.entries()
        body = await _aside(lambda: _journal_body(list(entries), limit, enabled))
        exchange.respond(200, body, extra=id_line(exchange.head))

    def clear_journal(self, exchange: Exchange) -> None:
        """Forget the requests so far."""
        self._env.journal.clear()
        version = self._env.live.version
        _send(exchange, {"status": "success", "message": "the journal is empty",
                         "version": version})  # fmt: skip

    # -- what goes wrong ----------------------------------------------------------------------

    async def scenarios(self, exchange: Exchange) -> None:
        """List what can go wrong, and say what does: which scenario, in which of its steps."""
        _, state = await self._state()
        options = self._options(state).values()
        current, names = scenario_switch.active(state, options), scenario_switch.known(options)
        found = scenario_switch.listed(state, names, current, self._progress(state))
        _send(exchange, {"status": "success", **found})

    async def activate(self, exchange: Exchange) -> None:
        """Switch to a scenario, which begins now on every worker."""
        await self._state()
        name, now = exchange.head.params["name"], self._env.clock()

        def edit(state: LiveState) -> LiveState:
            names = scenario_switch.known(self._options(state).values())
            return scenario_switch.activated(state, name, now, names)

        await self._done(exchange, f"the scenario {name} is active", edit)

    async def deactivate(self, exchange: Exchange) -> None:
        """Switch a scenario off, if it is the active one."""
        await self._state()
        name = exchange.head.params["name"]

        def edit(state: LiveState) -> LiveState:
            options = self._options(state).values()
            current, names = scenario_switch.active(state, options), scenario_switch.known(options)
            return scenario_switch.deactivated(state, name, current, names)

        await self._done(exchange, f"the scenario {name} is not active", edit)

    async def enable(self, exchange: Exchange) -> None:
        """Let rules and scenarios act again."""
        await self._done(exchange, "chaos is enabled", lambda s: structs.replace(s, chaos=True))

    async def disable(self, exchange: Exchange) -> None:
        """Silence all rules and scenarios; what a request orders still happens."""
        await self._done(exchange, "chaos is disabled", lambda s: structs.replace(s, chaos=False))

    # -- limits -------------------------------------------------------------------------------

    async def reset_limits(self, exchange: Exchange) -> None:
        """Give every caller its full rate limits again."""
        await self._done(
            exchange, "all rate limits are whole again",
            lambda state: structs.replace(state, limits_epoch=state.limits_epoch + 1),
        )  # fmt: skip

    async def _done(
        self, exchange: Exchange, said: str, edit: Callable[[LiveState], LiveState]
    ) -> None:
        version, _ = await change(self._env.live, edit)
        _send(exchange, {"status": "success", "message": said, "version": version})

    async def _state(
        self, patch: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[int, LiveState]:
        """The newest state; files that it, or a patch over it, names were read beside the loop."""
        version, state = read_state(self._env.live)
        configs = live_options.simulators(self._gateway.config.backends)
        work = unread(configs, composed(state.options, patch))
        if work is not None:
            await _aside(work)
            version, state = read_state(self._env.live)
        return version, state

    def _try(self, config: Any, state: LiveState) -> None:
        """Build the provider that a config describes; raises ``ConfigError``."""
        trial = Proposed(structs.replace(state, options={}))
        env = dataclasses.replace(self._env, live=trial, ledger=trial)
        registry.find("backends", KIND).build(config, env).close()

    def _progress(self, state: LiveState) -> dict[str, Any] | None:
        """How far the active scenario is, at the first simulator that has it."""
        for config in live_options.simulators(self._gateway.config.backends):
            options: Any = live_options.effective(config, state.options)
            run = scenario_switch.run_of(
                state,
                options.scenario,
                options.scenarios,
                OwnLedger(self._env.ledger, config.name),
            )
            if run is not None:
                return run.status(self._env.clock())
        return None

    def _options(self, state: LiveState) -> dict[str, dict[str, Any]]:
        """The options in force, by the name of the simulator."""
        configs = live_options.simulators(self._gateway.config.backends)
        return {c.name: live_options.in_force(c, state.options) for c in configs}

    def _send_config(self, exchange: Exchange, version: int, state: LiveState) -> None:
        found = self._options(state)
        _send(exchange, {
            "status": "success",
            "version": version,
            "changed": sorted(state.options),
            "config": next(iter(found.values()), {}),
            "backends": found,
        })  # fmt: skip


def _send(exchange: Exchange, body: dict[str, Any]) -> None:
    told = orjson.dumps({**body, "timestamp": time()})
    exchange.respond(200, told, extra=id_line(exchange.head))


def _journal_body(entries: list[bytes], limit: int, enabled: bool) -> bytes:
    newest = [orjson.Fragment(entry) for entry in entries[-limit:]]
    told = {"status": "success", "enabled": enabled, "count": len(entries), "entries": newest}
    return orjson.dumps({**told, "timestamp": time()})


async def _aside(work: Callable[[], T]) -> T:
    """Run what takes over a millisecond beside the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


FEATURE = Feature(Config, SimulatorAdmin)
