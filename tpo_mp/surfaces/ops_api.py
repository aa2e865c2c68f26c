"""Operations on the main port: banner, health, readiness, version, metrics.

Everything is read from shared memory; nothing here waits for another process.  What only a scrape
needs is imported beside the loop with the first one: a start takes an eighth less without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import orjson
from msgspec import Struct

from tpo_mp import __version__
from tpo_mp.dialects import shapes
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange
from tpo_mp.observe import health
from tpo_mp.observe.version import version
from tpo_mp.pipeline.edges import places
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.routing import named_models
from tpo_mp.pipeline.scoring import Scoreboard
from tpo_mp.ports import Env, Feature

T = TypeVar("T")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class OpsApi:
    """Routes every worker answers for the whole host."""

    def __init__(self, config: Config, env: Env) -> None:
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint("GET", "/", self.banner, "ops", access="open",
                     outcomes=(Outcome("name, version and paths", shapes.Banner),)),
            Endpoint("GET", "/version", self.version, "ops", access="open",
                     outcomes=(Outcome("name, version, age and features", shapes.VersionAnswer),)),
            Endpoint("GET", "/metrics", self.metrics, "ops",
                     outcomes=(Outcome("every series", media="text/plain"),)),
            *Endpoint("GET", "/health", self.health, "ops", access="open", outcomes=(
                Outcome("healthy or degraded", shapes.HealthReport),
                Outcome("unhealthy or shutting down", shapes.HealthReport, status=503),
            )).at("/v1/health"),
            *Endpoint("GET", "/live", self.live, "ops", access="open",
                      outcomes=(Outcome("it does", shapes.Liveness),)).at(
                          "/livez", "/healthz", "/health/liveliness"),
            *Endpoint("GET", "/ready", self.ready, "ops", access="open", outcomes=(
                Outcome("it does", shapes.Readiness),
                Outcome("it does not; `reason` says why", shapes.Readiness, status=503),
            )).at("/readyz", "/health/readiness"),
        ]  # fmt: skip

    def banner(self, exchange: Exchange) -> None:
        """Say what this is and where to look."""
        exchange.respond(
            200,
            orjson.dumps(
                {
                    "name": "tpo-mp",
                    "version": __version__,
                    "endpoints": sorted({e.template for e in self._gateway.endpoints()}),
                }
            ),
        )

    async def version(self, exchange: Exchange) -> None:
        """Name the running program's version, the age of its files and its features."""
        exchange.respond(200, orjson.dumps(await _aside(version)))

    def live(self, exchange: Exchange) -> None:
        """Answer whenever this process does."""
        exchange.respond(200, orjson.dumps(health.live()))

    def ready(self, exchange: Exchange) -> None:
        """Say whether the host takes calls."""
        status, body = health.ready(self._gateway.plane, self._gateway.metrics_arena)
        exchange.respond(status, orjson.dumps(body))

    async def health(self, exchange: Exchange) -> None:
        """Show the host's state in detail."""
        gateway = self._gateway
        room = places(gateway.config.pipeline.edges)
        models = named_models(gateway.config.backends)
        env, board = self._env, Scoreboard(self._env.scores, gateway.config.backends)
        body = await _aside(
            lambda: health.health(
                gateway.plane, gateway.metrics_arena, room, models, board.tallies(env.clock())
            )
        )
        exchange.respond(health.health_status(body), orjson.dumps(body))

    async def metrics(self, exchange: Exchange) -> None:
        """Show the whole host's metrics as Prometheus text."""
        gateway = self._gateway
        text, media = await _aside(lambda: _page(gateway))
        exchange.respond(200, text, media)


def _page(gateway: Gateway) -> tuple[bytes, bytes]:
    from tpo_mp.observe import prometheus

    text = prometheus.render(gateway.metrics_arena, gateway.plane)
    return text, prometheus.CONTENT_TYPE.encode()


async def _aside(work: Callable[[], T]) -> T:
    """Run what takes over a millisecond beside the loop; calls go on between its steps."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


FEATURE = Feature(Config, OpsApi)
