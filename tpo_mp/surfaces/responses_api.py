"""OpenAI's responses: create, streamed or not, and what is kept of them.

A response is kept in the store, with its input, unless the client says ``store: false``; a later
``previous_response_id`` that is kept here is written out into the input, so that every backend
understands it.  One that is not kept here goes upstream as it came.
A background response is answered at once and made meanwhile, whoever leaves; it is fetched,
followed and cancelled by its id on any shard.

Source: OpenAI API reference, responses.
Known weakness: a response of 8 MiB and more is answered but not kept.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl

import msgspec
import orjson
from msgspec import Meta, Raw, Struct

from tpo_mp.dialects import openai_responses, shapes
from tpo_mp.dialects.body import strip_routing_fields, with_fields
from tpo_mp.dialects.openai_responses_background import UNFINISHED, call_id_of
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure, InvalidRequest, NotFound, Shed, TpoError
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.following import follow
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.recall import ANSWERED
from tpo_mp.pipeline.ways import Way
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.callid import mark_of
from tpo_mp.store.questions import RESPONSES, response_key
from tpo_mp.types import Call, Dialect, Reply

_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_FINAL = (b'"response.completed"', b'"response.incomplete"')
_MAX_PAGE = 100
_SETTLES_S = 3.0
_LOOK_S = 0.02
_QUESTIONS = 10
_WAY: Final = Way(Dialect.OPENAI_RESPONSES, openai_responses.decode_request)
STREAM = (
    Parameter("stream", "With `true`, the events of a background response.",
              Literal["true", "false"]),
    Parameter("starting_after", "With `stream`, the number of the last event already read.",
              Annotated[int, Meta(ge=0, le=999_999_999)]),
)  # fmt: skip
PAGE = (
    Parameter("limit", "Most items to list; 20 unless given.",
              Annotated[int, Meta(ge=1, le=_MAX_PAGE)]),
    Parameter("order", "Newest first unless `asc`.", Literal["asc", "desc"]),
    Parameter("after", "Id of the last item of the page before."),
)  # fmt: skip


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept."""

    age_s: Annotated[float, Meta(gt=0,
        description="How long a response can be fetched; `store.result_age_s` caps it.",
    )] = 30 * 86400.0  # fmt: skip


class Kept(Struct):
    """One record of the store."""

    response: Raw
    input: list[dict[str, Any]]


class _Head(Struct):
    id: str


class _Output(Struct):
    output: list[dict[str, Any]] = []
    status: str = ""


class _State(Struct):
    status: str = ""
    background: bool | None = None


class _FinalEvent(Struct):
    response: Raw


class ResponsesApi:
    """Routes under ``/v1/responses``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._store = env.store
        self._log = env.log
        self._tasks: set[asyncio.Task[None]] = set()
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        one, kept = "/v1/responses/{id}", "/v1/responses/$RESPONSE_ID"
        return [
            Endpoint(
                "POST", "/v1/responses", self.create, "openai", max_body_bytes=0, infers=True,
                request=openai_responses.ResponsesRequest,
                outcomes=(Outcome("the response", shapes.ModelResponse),
                          Outcome("with `stream`, its events up to `response.completed`",
                                  media=EVENTS)),
                example={"model": "echo", "input": "hello"},
            ),
            Endpoint("GET", one, self.get, "openai", example_path=kept, parameters=STREAM,
                     errors=(400,),
                     outcomes=(Outcome("the response", shapes.ModelResponse),
                               Outcome("with `stream`, its events", media=EVENTS))),
            Endpoint("DELETE", one, self.delete, "openai", example_path=kept,
                     outcomes=(Outcome("it is forgotten", shapes.DeletedResponse),)),
            Endpoint("POST", one + "/cancel", self.cancel, "openai", takes_json=False,
                     example_path=kept + "/cancel", errors=(400,),
                     outcomes=(Outcome("the response as it ended", shapes.ModelResponse),)),
            Endpoint("GET", one + "/input_items", self.input_items, "openai", parameters=PAGE,
                     example_path=kept + "/input_items",
                     outcomes=(Outcome("one page", shapes.InputItems),)),
        ]  # fmt: skip

    def create(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """Make a response: whole, streamed or in the background."""
        gateway = self._gateway
        known = gateway.recall(exchange, _WAY)
        if known is None:
            return self._create(exchange)
        if known is not ANSWERED:  # one that is answered and not kept
            call = _WAY.call(gateway, exchange, known.request, known.body, known)
            _WAY.submit(gateway, exchange, call)
        return None

    async def _create(self, exchange: Exchange) -> None:
        body = exchange.body
        request = openai_responses.decode_request(body)
        if request.background and request.store is False:
            said = "a background response must be stored"
            raise InvalidRequest(said, reason="invalid_value", param="background")
        if request.has_routing_fields():
            body = strip_routing_fields(body)
        if request.previous_response_id:
            body = await self._continued(exchange, body, request.previous_response_id)
        call = _WAY.call(self._gateway, exchange, request, body)
        if request.background:
            await self._in_background(exchange, call, follow_it=call.stream)
        elif request.store is False:
            _WAY.submit(self._gateway, exchange, call)
        else:
            self._gateway.submit(KeptDelivery(self._gateway, exchange, call, self.keep))

    async def _in_background(self, exchange: Exchange, call: Call, *, follow_it: bool) -> None:
        """Start a call that nobody waits for; its first state, or its events, are the answer."""
        asked = call.body
        call.body = with_fields(asked, background=None, stream=True)
        call.stream = True
        response = await self._gateway.run_background(call, asked)
        if follow_it:
            await follow(exchange, self._gateway, call.id, -1)
        else:
            ids = b"x-tpo-call-id: %b\r\n" % call.id.encode()
            answer = orjson.dumps(response)
            exchange.respond(200, answer, extra=id_line(exchange.head) + ids)

    async def get(self, exchange: Exchange) -> None:
        """Answer a kept response as it stands, or the events of a background one."""
        name = exchange.head.params["id"]
        after = _starting_after(_query(exchange.head.query))
        kept = await self._kept(exchange, name)
        if after is None:
            exchange.respond(200, bytes(kept.response), extra=id_line(exchange.head))
            return
        call_id = call_id_of(name)
        if call_id is None or not _state(kept).background:
            said = "only a background response can be streamed again"
            raise InvalidRequest(said, reason="not_background", param="stream")
        await follow(exchange, self._gateway, call_id, after)

    async def delete(self, exchange: Exchange) -> None:
        """Forget a kept response; one that is still being made is cancelled first."""
        name = exchange.head.params["id"]
        kept = await self._settled(exchange, name, await self._kept(exchange, name))
        key = response_key(self._gateway.mark(exchange.head), name)
        if _state(kept).status in UNFINISHED or not await self._store.put(RESPONSES, key, b"", 0):
            raise _unavailable()
        gone = orjson.dumps({"id": name, "object": "response", "deleted": True})
        exchange.respond(200, gone, extra=id_line(exchange.head))

    async def cancel(self, exchange: Exchange) -> None:
        """Cancel a background response; one that is finished stays as it is."""
        name = exchange.head.params["id"]
        kept = await self._kept(exchange, name)
        if not _state(kept).background:
            said = "only background responses can be cancelled"
            raise InvalidRequest(said, reason="not_background", param="response_id")
        kept = await self._settled(exchange, name, kept)
        exchange.respond(200, bytes(kept.response), extra=id_line(exchange.head))

    async def _settled(self, exchange: Exchange, name: str, kept: Kept) -> Kept:
        """A response that nobody works on any more: cancelled, if somebody still did."""
        call_id = call_id_of(name)
        if call_id is None or _state(kept).status not in UNFINISHED:
            return kept
        await self._gateway.cancel(call_id)
        until = monotonic() + _SETTLES_S
        while _state(kept).status in UNFINISHED and monotonic() < until:
            await asyncio.sleep(_LOOK_S)
            kept = await self._kept(exchange, name)
        return kept

    async def input_items(self, exchange: Exchange) -> None:
        """List what a kept response was made of, newest first unless asked otherwise."""
        name = exchange.head.params["id"]
        items = [
            {"id": f"item_{name}_{i}"} | item
            for i, item in enumerate((await self._kept(exchange, name)).input)
        ]
        page = _page(items, exchange.head.query)
        exchange.respond(200, orjson.dumps(page), extra=id_line(exchange.head))

    def keep(self, response: bytes, call: Call, then: Callable[[], None]) -> None:
        """Put a response into the store, then go on; the client is answered either way."""
        task = asyncio.get_running_loop().create_task(self._keep(response, call, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, response: bytes, call: Call, then: Callable[[], None]) -> None:
        try:
            name = msgspec.json.decode(response, type=_Head).id
        except (msgspec.DecodeError, UnicodeDecodeError):
            name = ""
        if _ID.fullmatch(name):
            made_of = orjson.dumps(openai_responses.input_items(call.body))
            record = b'{"response":%b,"input":%b}' % (response, made_of)
            key = response_key(mark_of(call.id, call.tenant), name)
            if not await self._store.put(RESPONSES, key, record, self._config.age_s):
                self._log.warning("response_not_kept", call_id=call.id, response_id=name)
        then()

    async def _kept(self, exchange: Exchange, name: str) -> Kept:
        found = await self._find(exchange, name)
        if found is None:
            said = f"response {name[:64]!r} was not found"
            raise NotFound(said, reason="response_not_found", param="response_id")
        return found

    async def _find(self, exchange: Exchange, name: str) -> Kept | None:
        if not _ID.fullmatch(name):
            return None
        key = response_key(self._gateway.mark(exchange.head), name)
        for _ in range(_QUESTIONS):  # control may be starting again
            answer = await self._gateway.ask_store(RESPONSES, key)
            if answer is not None:
                break
        else:
            raise _unavailable()
        return None if answer[0] is None else msgspec.json.decode(answer[0], type=Kept)

    async def _continued(self, exchange: Exchange, body: bytes, name: str) -> bytes:
        """The body with the kept response and its input written out before its own input."""
        kept = await self._find(exchange, name)
        if kept is None:
            return body
        fields = orjson.loads(body)
        del fields["previous_response_id"]
        said = msgspec.json.decode(kept.response, type=_Output)
        if said.status in UNFINISHED:
            words = f"response {name[:64]!r} is not finished"
            raise InvalidRequest(words, reason="not_finished", param="previous_response_id")
        fields["input"] = [*kept.input, *said.output, *openai_responses.input_items(body)]
        return orjson.dumps(fields)


class KeptDelivery(Delivery):
    """Delivery of a response that is put into the store before the client's answer ends."""

    __slots__ = ("_cutter", "_final", "_keep")

    def __init__(
        self,
        gateway: Gateway,
        exchange: Exchange,
        call: Call,
        keep: Callable[[bytes, Call, Callable[[], None]], None],
    ) -> None:
        super().__init__(gateway, exchange, call)
        self._keep = keep
        self._cutter: EventCutter | None = EventCutter()
        self._final: bytes | None = None

    def send(self, reply: Reply) -> None:
        """Keep a whole response, then send it."""
        assert reply.body is not None
        self._keep(reply.body, self.call, lambda: self._send(reply))

    def _send(self, reply: Reply) -> None:
        if not self.settled:
            super().send(reply)

    def data(self, chunk: bytes) -> None:
        """Send a piece of the stream, on the watch for the whole response at its end."""
        super().data(chunk)
        if self._cutter is None:
            return
        try:
            events = self._cutter.feed(chunk)
        except BackendFailure:
            self._cutter = None
            return
        for _, data in events:
            if any(mark in data[:64] for mark in _FINAL):
                self._final = bytes(msgspec.json.decode(data, type=_FinalEvent).response)

    def end(self, error: TpoError | None) -> None:
        """Keep the response, then end the stream."""
        if error is None and self._final is not None and not self.settled:
            self._keep(self._final, self.call, lambda: self._end(error))
        else:
            super().end(error)

    def _end(self, error: TpoError | None) -> None:
        super().end(error)


def _state(kept: Kept) -> _State:
    return msgspec.json.decode(kept.response, type=_State)


def _starting_after(asked: dict[str, str]) -> int | None:
    """Where a stream is to go on, -1 for its beginning; ``None`` when no stream is asked for."""
    stream, after = asked.get("stream", "false"), asked.get("starting_after")
    if stream not in ("true", "false"):
        raise InvalidRequest("stream must be true or false", param="stream")
    if after is not None and stream == "false":
        raise InvalidRequest("starting_after needs stream=true", param="starting_after")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 10):
        raise InvalidRequest("starting_after must be an event's number", param="starting_after")
    if stream == "false":
        return None
    return -1 if after is None else int(after)


def _query(query: bytes) -> dict[str, str]:
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


def _page(items: list[dict[str, Any]], query: bytes) -> dict[str, Any]:
    """One page of a list, as the SDKs' cursors read it."""
    asked = _query(query)
    limit = asked.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= _MAX_PAGE):
        raise InvalidRequest(f"limit must be a number from 1 to {_MAX_PAGE}", param="limit")
    order = asked.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    if order == "desc":
        items.reverse()
    if "after" in asked:
        places = [i for i, item in enumerate(items) if item["id"] == asked["after"]]
        if not places:
            raise InvalidRequest("after is no item of this list", param="after")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }


def _unavailable() -> Shed:
    return Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)


FEATURE = Feature(Config, ResponsesApi)
