"""How the host stands, for people and for gateways in front: queues, counters, shards, backends.

Numbers are sums over shared memory and settings are the configuration's, so every worker answers
alike.  What looks inside is served only where ``debug`` asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import orjson
from msgspec import Meta, Struct

from tpo_mp import __version__
from tpo_mp.dialects import shapes
from tpo_mp.errors import Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.observe import health
from tpo_mp.observe.rooms import DEPTH_GAUGE, rooms
from tpo_mp.pipeline.edges import places
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.routing import named_models
from tpo_mp.pipeline.scoring import Scoreboard
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.standing import drain_row, health_row, read_standing
from tpo_mp.store.questions import ASK_S, LETTERS, LetterQuery


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it shows of the inside."""

    debug: Annotated[bool, Meta(
        description="Serve /api/v1/debug/dlq, /api/v1/debug/dedup-index and "
                    "/api/v1/debug/pipeline.")] = False  # fmt: skip


class StatusApi:
    """Routes about the host as a whole."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        served = [
            Endpoint("GET", "/api/v1/pipeline/status", self.pipeline, "native",
                     outcomes=(Outcome("queues and jobs", shapes.PipelineStatus),)),
            Endpoint("GET", "/v1/metrics", self.metrics, "native",
                     outcomes=(Outcome("every series", shapes.MetricsReport),)),
            Endpoint("GET", "/v1/cluster/status", self.cluster, "native",
                     outcomes=(Outcome("nodes, routes, backends", shapes.ClusterStatus),)),
        ]  # fmt: skip
        if self._config.debug:
            page = Outcome("one page", shapes.LetterPage)
            inside = Outcome("the chain and its shards", dict[str, Any])
            served += [
                Endpoint("GET", "/api/v1/debug/dlq", self.dead_letters, "native", access="admin",
                         outcomes=(page,)),
                Endpoint("GET", "/api/v1/debug/pipeline", self.inside, "native", access="admin",
                         outcomes=(inside,)),
                Endpoint("GET", "/api/v1/debug/dedup-index", self.dedup, "native", access="admin",
                         outcomes=(Outcome("calls that share answers", dict[str, Any]),)),
            ]  # fmt: skip
        return served

    async def pipeline(self, exchange: Exchange) -> None:
        """Show how full the pipeline is."""
        _send(exchange, await self._read(self._pipeline))

    async def metrics(self, exchange: Exchange) -> None:
        """Show the whole host's metrics as JSON."""
        _send(exchange, await self._read(self._metrics))

    async def cluster(self, exchange: Exchange) -> None:
        """Show nodes, routes, backends and memory."""
        _send(exchange, await self._read(self._cluster))

    async def inside(self, exchange: Exchange) -> None:
        """Show the compiled chain and each shard."""
        _send(exchange, await self._read(self._inside))

    async def dedup(self, exchange: Exchange) -> None:
        """Show how many calls share an answer, on the whole host."""
        _send(exchange, await self._read(self._dedup))

    async def dead_letters(self, exchange: Exchange) -> None:
        """List dead letters as `/api/v1/dlq` does."""
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", 1000, least=1, most=10_000)
        after = given.whole(query, "after", 0, least=0, most=1 << 62) if "after" in query else None
        key = LetterQuery(limit, after).key()
        answer = await self._gateway.ask_store(LETTERS, key, ASK_S)
        if answer is None or answer[0] is None:
            raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)
        exchange.respond(200, answer[0], extra=id_line(exchange.head))

    # -- bodies, made beside the loop -----------------------------------------------------------

    async def _read(self, make: Callable[[_Series], dict[str, Any]]) -> dict[str, Any]:
        arena = self._gateway.metrics_arena
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: make(_Series(arena.collect())))

    def _pipeline(self, series: _Series) -> dict[str, Any]:
        plane, config = self._gateway.plane, self._gateway.config
        found = rooms(series.of(DEPTH_GAUGE), places(config.pipeline.edges), plane.workers)
        most = sum(room.capacity for room in found)
        waiting = sum(room.waiting for room in found)
        return {
            "status": health.HOST_STATES[plane.host_state],
            "version": __version__,
            "pending_requests": self._open_calls(),
            "pipeline_queue_len": waiting,
            "pipeline_queue_capacity": most - waiting,
            "pipeline_queue_max": most,
            "stages": [room._asdict() for room in found],
            "jobs": {
                "open": int(series.sum("tpo_jobs_open")),
                "prompts_running": int(series.sum("tpo_job_prompts_running")),
            },
        }

    def _metrics(self, series: _Series) -> dict[str, Any]:
        config, report = self._gateway.config, self._health()
        return {
            "server_metrics": {
                "uptime_secs": report["uptime_secs"],
                "open_calls": self._open_calls(),
                "requests_total": int(series.sum("tpo_requests_total")),
                "calls": {t: int(n) for t, n in series.by("tpo_calls_total", "terminal").items()},
                "prompt_tokens": int(series.sum("tpo_prompt_tokens_total")),
                "completion_tokens": int(series.sum("orchestrator_tokens_generated_total")),
                "dead_letters": int(series.sum("tpo_dead_letters")),
                "rss_bytes": report["memory"]["rss_bytes"],
            },
            "cluster_metrics": self._nodes(report),
            "rate_limit_stats": {
                "enabled": "rate_limit" in config.stage_order,
                "shed": int(series.sum("orchestrator_requests_shed_total")),
            },
            "auth_stats": {"enabled": config.auth.enabled, "keys": len(config.auth.keys)},
            "metrics": series.all(),
        }

    def _cluster(self, _series: _Series) -> dict[str, Any]:
        gateway, report = self._gateway, self._health()
        config = gateway.config
        shards = report["host"]["shards"]
        return self._nodes(report) | {
            "nodes": [
                {
                    "id": (config.distributed.node_id if config.distributed else "") or "local",
                    "status": report["status"],
                    "open_calls": self._open_calls(),
                    "rss_bytes": report["memory"]["rss_bytes"],
                    "shards": [{"slot": s["slot"], "state": s["state"]} for s in shards],
                }
            ],
            "load_balancer": {
                "routes": [
                    {"models": r.models, "strategy": r.strategy, "backends": r.backends}
                    for r in config.routes
                ]
            },
            "routing": {"workers": gateway.plane.workers, "map_version": gateway.plane.map_version},
            "inference_engine": {
                "backends": [
                    {
                        "name": b.name,
                        "kind": b.kind,
                        "models": b.models,
                        "weight": b.weight,
                        "state": self._state(b.name),
                    }
                    for b in config.backends
                ]
            },
            "memory": report["memory"],
        }

    def _inside(self, series: _Series) -> dict[str, Any]:
        config = self._gateway.config
        return {
            "name": config.pipeline.name,
            "version": config.pipeline.version,
            "stages": config.stage_order,
            "config_epoch": self._gateway.plane.config_epoch,
            "reached": {
                s: int(n) for s, n in series.by("orchestrator_requests_total", "stage").items()
            },
            "shards": self._health()["host"]["shards"],
        }

    def _dedup(self, series: _Series) -> dict[str, Any]:
        counted = {
            name: int(series.sum(f"orchestrator_dedup_{metric}"))
            for name, metric in [
                ("total_submitted", "requests_total"),
                ("deduplicated", "hits_total"),
                ("active_requests", "active_requests"),
                ("waiters_unblocked", "waiters_unblocked_total"),
            ]
        }
        asked = counted["total_submitted"]
        stages = self._gateway.config.stage_order
        return {
            "enabled": "dedup" in stages,
            **counted,
            "dedup_rate": counted["deduplicated"] / asked if asked else 0.0,
            "semantic": {
                "enabled": "near_dedup" in stages,
                "hits": int(series.sum("orchestrator_dedup_semantic_hits_total")),
                "misses": int(series.sum("orchestrator_dedup_semantic_miss_total")),
            },
        }

    def _health(self) -> dict[str, Any]:
        gateway = self._gateway
        room = places(gateway.config.pipeline.edges)
        models = named_models(gateway.config.backends)
        tries = Scoreboard(self._env.scores, gateway.config.backends).tallies(self._env.clock())
        return health.health(gateway.plane, gateway.metrics_arena, room, models, tries)

    def _state(self, backend: str) -> str:
        look = self._env.ledger.look
        row = read_standing(look(health_row(backend)), look(drain_row(backend)))
        return row.standing(self._env.clock()).name.lower()

    def _open_calls(self) -> int:
        plane = self._gateway.plane
        return sum(plane.seat(n).open_calls for n in range(plane.seats))

    def _nodes(self, report: dict[str, Any]) -> dict[str, Any]:
        shards = report["host"]["shards"]
        return {
            **health.nodes(report["status"]),
            "shards": len(shards),
            "shards_ready": sum(shard["state"] == "ready" for shard in shards),
        }


class _Series:
    """The host's series, by name."""

    def __init__(self, families: Iterable[health.FamilyView]) -> None:
        self._families = {family.name: family for family in families}

    def of(self, name: str) -> Sequence[health.SampleView]:
        """All samples."""
        family = self._families.get(name)
        return () if family is None else family.samples

    def sum(self, name: str, **labels: str) -> float:
        """All samples with those labels."""
        return sum(s.value for s in self.of(name) if labels.items() <= dict(s.labels).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by one label."""
        out: dict[str, float] = {}
        for sample in self.of(name):
            key = dict(sample.labels).get(label, "")
            out[key] = out.get(key, 0.0) + sample.value
        return out

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """Every sample; of a histogram its count and its sum."""
        return {
            name: [
                {"labels": dict(s.labels)}
                | ({"count": s.buckets[-1][1], "sum": s.sum} if s.buckets else {"value": s.value})
                for s in family.samples
            ]
            for name, family in sorted(self._families.items())
        }


def _send(exchange: Exchange, body: dict[str, Any]) -> None:
    exchange.respond(200, orjson.dumps(body), extra=id_line(exchange.head))


FEATURE = Feature(Config, StatusApi)
