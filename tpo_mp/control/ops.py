"""The ops port: metrics and health, from shared memory alone.

Pages are made on a thread of their own, one at a time, so that neither a scrape nor a crowd of them
holds the loop.

Invariants: every connection ends after ``LIFETIME_S`` and a grace, however slowly it is fed, and at
most ``MAX_CONNECTIONS`` exist.
Weakness: no authentication; the port is meant for loopback or a private network.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import orjson
from aiohttp import web

from tpo_mp.http.nameless import SILENT, nameless
from tpo_mp.observe import health, prometheus
from tpo_mp.observe.health import ArenaView, TallyView
from tpo_mp.observe.version import version
from tpo_mp.shm.plane import Plane

T = TypeVar("T")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

LIFETIME_S = 60.0
GRACE_S = 2.0
MAX_CONNECTIONS = 256
STOP_S = 1.0


class OpsPort:
    """The server on an inherited listening socket."""

    def __init__(
        self,
        plane: Plane,
        arena: ArenaView,
        places: Callable[[], Mapping[str, int]],
        models: Callable[[], Sequence[str]] = tuple,
        tries: Callable[[], Mapping[str, TallyView]] = dict,
    ) -> None:
        """Waiting rooms' capacities, models' names and backends' tries are asked for as of now."""
        self._plane = plane
        self._places = places
        self._models = models
        self._tries = tries
        self._arena = arena
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="ops-pages")
        self._routes: dict[str, Handler] = {
            "/metrics": self._metrics,
            "/live": self._live,
            "/livez": self._live,
            "/healthz": self._live,
            "/health/liveliness": self._live,
            "/ready": self._ready,
            "/readyz": self._ready,
            "/health/readiness": self._ready,
            "/health": self._health,
            "/v1/health": self._health,
            "/version": self._version,
        }
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._lifetime_s = LIFETIME_S

    async def start(self, listener: socket.socket, *, lifetime_s: float = LIFETIME_S) -> None:
        """Serve until ``close``."""
        self._lifetime_s = lifetime_s
        self._http = web.Server(
            self._answer, request_factory=nameless, access_log=None, logger=SILENT,
            keepalive_timeout=15.0, lingering_time=1.0, auto_decompress=False,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=listener)

    async def close(self) -> None:
        """Stop accepting, finish what is being answered, close."""
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(STOP_S)
        self._pages.shutdown(wait=False, cancel_futures=True)

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._http
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            return _Refused()
        connection = server()
        loop = asyncio.get_running_loop()
        loop.call_later(self._lifetime_s, connection.close)
        # ``close`` lets an answer finish, but does not end one who sends half a request.
        loop.call_later(self._lifetime_s + GRACE_S, connection.force_close)
        return connection

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._routes.get(request.path)
        if handler is None:
            return _json(404, {"error": "no such page", "pages": sorted(self._routes)})
        if request.method not in ("GET", "HEAD"):
            refused = _json(405, {"error": "pages are only read"})
            refused.headers["Allow"] = "GET, HEAD"
            return refused
        try:
            return await handler(request)
        except Exception as e:  # noqa: BLE001 - a defect answers 500 and is told
            told = {"message": f"defect in {request.path}", "exception": e}
            asyncio.get_running_loop().call_exception_handler(told)
            return _json(500, {"error": "internal error"})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        page = await self._made(lambda: prometheus.render(self._arena, self._plane))
        return web.Response(body=page, headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def _live(self, _: web.BaseRequest) -> web.Response:
        return _json(200, health.live())

    async def _version(self, _: web.BaseRequest) -> web.Response:
        return _json(200, await self._made(version))

    async def _ready(self, _: web.BaseRequest) -> web.Response:
        return _json(*await self._made(lambda: health.ready(self._plane, self._arena)))

    async def _health(self, _: web.BaseRequest) -> web.Response:
        body = await self._made(
            lambda: health.health(
                self._plane, self._arena, self._places(), self._models(), self._tries()
            )
        )
        return _json(health.health_status(body), body)

    async def _made(self, page: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pages, page)


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _json(status: int, body: health.Body) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
