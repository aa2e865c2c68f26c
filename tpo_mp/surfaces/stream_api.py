"""Native streams: server-sent events and WebSockets, started here or attached to.

``/api/v1/stream`` and ``/v1/stream`` take one request after the other over a WebSocket,
``/api/v1/ws`` many at once.  ``/v1/stream/sse`` starts a stream, attaches to one by request id or
``Last-Event-ID``, or follows all requests of a session; any worker serves it, whichever owns the
call.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated
from urllib.parse import parse_qsl

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.dialects import native
from tpo_mp.errors import InvalidRequest, NotFound
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.http.socket import Socket
from tpo_mp.observe.health import ArenaView
from tpo_mp.pipeline.conversation import Conversation
from tpo_mp.pipeline.feed import UNNUMBERED
from tpo_mp.pipeline.feeds import ACTIVE, COMPLETED, TOKENS, parse_event_id
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.native_calls import native_call
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.pipeline.sse_listener import SSE, SseListener
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.callid import CallIds

MAX_AT_ONCE = 64
_WAIT_S = 60.0
_PROMPT = ("prompt", "input", "model", "session_id", "max_tokens", "temperature", "deadline_secs",
           "timeout_seconds")  # fmt: skip
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_SESSION = Annotated[str, Meta(min_length=1, max_length=256)]
SWITCH = Outcome(
    "switched to WebSocket, when the request asks for that upgrade", status=101, media=""
)
STREAMED = Outcome("`start`, `token`…, then `done` or `error`, each with an `id`", media=EVENTS)
QUERY = (
    Parameter("prompt", "Starts a stream; `input` is another name for it."),
    Parameter("input", "Another name for `prompt`."),
    Parameter("model", "Model of the stream that is started."),
    Parameter("session_id", "Session of the stream that is started, or to follow.", _SESSION),
    Parameter("max_tokens", "Most tokens of the reply.", Annotated[int, Meta(ge=1)]),
    Parameter("temperature", "Sampling temperature.", Annotated[float, Meta(ge=0, le=2)]),
    Parameter("deadline_secs", "Seconds until the call expires.", float),
    Parameter("timeout_seconds", "Another name for `deadline_secs`.", float),
    Parameter("request_id", "Attaches to this request."),
    Parameter("last-event-id", "Resumes after this event.", place="header"),
)


class StreamStats(Struct, frozen=True, kw_only=True):
    """Native streams of the whole host since it started."""

    active_streams: int
    completed_streams: int
    total_tokens: int


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling used when a streamed request does not say; see also ``[server.streams]``."""

    max_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Tokens of a native stream when it does not say; omitted: as its "
            "backend's kind has it, mostly 256."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(
            description="Temperature of native streams that do not say; omitted: as its "
            "backend's kind has it, mostly 0.7."
        ),
    ] = None


class StreamApi:
    """Routes that stream native events."""

    def __init__(self, config: Config, env: Env) -> None:
        self._sampling = msgspec.structs.asdict(config)
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint(
                "POST", "/api/v1/stream", self.stream, "native", max_body_bytes=0, infers=True,
                request=native.PromptRequest, example={"prompt": "hello"}, outcomes=(STREAMED,),
            ),
            *Endpoint(
                "GET", "/api/v1/stream", self.upgrade, "native", socket=self.talk,
                outcomes=(SWITCH,), errors=(403, 426),
                summary="Talk over a WebSocket, one request after the other.",
            ).at("/v1/stream"),
            Endpoint(
                "GET", "/api/v1/ws", self.upgrade, "native", socket=self.talk_at_once,
                outcomes=(SWITCH,), errors=(403, 426),
                summary="Talk over a WebSocket, many requests at once.",
            ),
            *Endpoint(
                "GET", "/v1/stream/sse", self.events, "native", infers=True, parameters=QUERY,
                example_path="/v1/stream/sse?prompt=hello", outcomes=(STREAMED,),
                errors=(400, 404, 422),
            ).at("/api/v1/stream/sse"),
            Endpoint("GET", "/api/v1/stream/stats", self.stats, "native",
                     outcomes=(Outcome("the counts", StreamStats),)),
        ]  # fmt: skip

    # -- WebSockets ---------------------------------------------------------------------------

    def upgrade(self, exchange: Exchange) -> None:
        """Refuse a request that does not ask for a WebSocket."""
        raise InvalidRequest(
            "this route speaks WebSocket: send upgrade: websocket",
            reason="upgrade_required", param="upgrade", status=426,
        )  # fmt: skip

    def talk(self, socket: Socket) -> None:
        """Take requests one after the other."""
        last = socket.head.path == "/v1/stream"
        Conversation(self._gateway, socket, self._sampling, most=1, closing_token=last)

    def talk_at_once(self, socket: Socket) -> None:
        """Take many requests at once."""
        Conversation(self._gateway, socket, self._sampling, most=MAX_AT_ONCE)

    # -- server-sent events -------------------------------------------------------------------

    def stream(self, exchange: Exchange) -> None:
        """Answer a prompt as events: start, token…, done or error."""
        self._start(exchange, native.decode_request(exchange.body))

    def _start(self, exchange: Exchange, request: native.PromptRequest) -> None:
        call = native_call(self._gateway, exchange, request, stream=True, **self._sampling)
        session = request.session or call.session
        NativeStream(self._gateway, exchange, call, session).run()

    def events(self, exchange: Exchange) -> object:
        """Stream the events of a new prompt, of a running request, or of a whole session."""
        head = exchange.head
        query = _query(head.query)
        if head.method == "HEAD":
            exchange.respond(200, b"", SSE, id_line(head))
            return None
        asked = query.pop("request_id", None)
        request = native.request_of(query)
        last = head.headers.get(b"last-event-id", b"").decode("latin-1")
        if last and (asked or not ("session_id" in query or head.session)):
            # A browser repeats the whole request when it reconnects: what it was is in the id.
            call_id, after = parse_event_id(last)
            if asked not in (None, call_id):
                raise InvalidRequest("that event is another request's", param="last-event-id")
            return self._attach(exchange, call_id, after)
        if asked is not None:
            if "prompt" in query or "input" in query:
                raise InvalidRequest("send a prompt or a request_id, not both", param="request_id")
            return self._attach(exchange, asked, UNNUMBERED)
        if "prompt" in query or "input" in query:
            if last:
                return self._attach(exchange, *parse_event_id(last))
            self._start(exchange, request)
            return None
        session = head.session or request.session
        if session is not None and not _NAME.fullmatch(session):
            raise InvalidRequest("session_id must be printable", param="session_id")
        if session is None:
            raise InvalidRequest(
                "send a prompt, a request_id, or a session in x-session-id", param="prompt"
            )
        return self._follow(exchange, session, last)

    async def _attach(self, exchange: Exchange, call_id: str, after: int) -> None:
        gateway, head = self._gateway, exchange.head
        if CallIds.parse(call_id) is None or not gateway.owns(head, call_id):
            raise NotFound("no such request", reason="request_not_found")
        tenant = gateway.tenant(head)
        lines = id_line(head) + b"x-tpo-call-id: %b\r\n" % call_id.encode()
        listener = SseListener(gateway.feeds, exchange, lines=lines)
        if await gateway.feeds.follow(call_id, listener, tenant, after):
            listener.begin(lines)
            if not listener.readers and not listener.sources:
                listener.finish()  # there was nothing left to tell
            return
        await self._attach_record(exchange, call_id, listener, lines)

    async def _attach_record(
        self, exchange: Exchange, call_id: str, listener: SseListener, lines: bytes
    ) -> None:
        """Tell the end of a call that has no feed, or whose shard is gone."""
        record = await self._gateway.result(call_id, 0.0)
        if record is None:
            raise NotFound("no such request", reason="request_not_found")
        found = orjson.loads(record)
        task = asyncio.current_task()
        assert task is not None
        listener.on_left = task.cancel
        listener.begin(lines)
        start = {"request_id": call_id, "session_id": found["session_id"]}
        listener.take(call_id, UNNUMBERED, "start", orjson.dumps(start))
        while found["status"] in ("processing", "pending"):
            record = await self._gateway.result(call_id, _WAIT_S)
            found = {"status": "failed", "error": None} if record is None else orjson.loads(record)
        if found["status"] == "completed":
            done = found | {"text": found["result"], "cached": False, "provider": None}
            listener.take(call_id, UNNUMBERED, "done", orjson.dumps(done))
        else:
            error = {"request_id": call_id} | (found.get("error") or {"code": "request_lost"})
            listener.take(call_id, UNNUMBERED, "error", orjson.dumps(error))

    async def _follow(self, exchange: Exchange, session: str, last: str) -> None:
        gateway, head = self._gateway, exchange.head
        feeds, tenant = gateway.feeds, gateway.tenant(head)
        listener = SseListener(feeds, exchange, whole=False, lines=id_line(head))
        listener.on_left = lambda: feeds.unfollow_session(session, listener, tenant)
        if last:
            call_id, after = parse_event_id(last)
            listener.expect(call_id, after)
            await feeds.follow(call_id, listener, tenant, after)
        feeds.follow_session(session, listener, tenant)
        try:
            await feeds.heard(listener)
        except asyncio.CancelledError:  # the client left
            listener.left()
            raise
        listener.begin(id_line(head))

    # -- numbers ------------------------------------------------------------------------------

    async def stats(self, exchange: Exchange) -> None:
        """Count the native streams of the whole host: running, completed, and their tokens."""
        arena = self._gateway.metrics_arena
        found = await asyncio.get_running_loop().run_in_executor(None, lambda: _count(arena))
        exchange.respond(200, msgspec.json.encode(found), extra=id_line(exchange.head))


def _count(arena: ArenaView) -> StreamStats:
    """Add up all shards; takes over a millisecond."""
    sums = {
        family.name: int(sum(sample.value for sample in family.samples))
        for family in arena.collect()
        if family.name.startswith("tpo_stream")
    }
    return StreamStats(
        active_streams=sums.get(ACTIVE, 0),
        completed_streams=sums.get(COMPLETED, 0),
        total_tokens=sums.get(TOKENS, 0),
    )


def _query(raw: bytes) -> dict[str, str]:
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise InvalidRequest("a query parameter is given twice")
    for name in query:
        if name not in _PROMPT and name != "request_id":
            raise InvalidRequest(f"no query parameter {name[:64]!r} here", param=name[:64])
    return query


FEATURE = Feature(Config, StreamApi)
