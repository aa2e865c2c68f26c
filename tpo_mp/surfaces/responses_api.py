"""OpenAI's responses: create, streamed or not, and what is kept of them.

A response is kept in the store, with its input, unless the client says ``store: false``; a later
``previous_response_id`` that is kept here is written out into the input, so that every backend
understands it.  One that is not kept here goes upstream as it came.

Source: OpenAI API reference, responses.
Known weakness: a response of 8 MiB and more is answered but not kept; background responses are
refused, so there is none to cancel.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import msgspec
import orjson
from msgspec import Meta, Raw, Struct

from tpo_mp.dialects import openai_responses, shapes
from tpo_mp.dialects.body import strip_routing_fields
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure, InvalidRequest, NotFound, Shed, TpoError
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call, Dialect, Reply

TABLE = "responses"
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_FINAL = (b'"response.completed"', b'"response.incomplete"')
_MAX_PAGE = 100
STREAM = Parameter("stream", "Only `false`: what is kept is whole.", Literal["false"])
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
            Endpoint("GET", one, self.get, "openai", example_path=kept, parameters=(STREAM,),
                     outcomes=(Outcome("the response", shapes.ModelResponse),)),
            Endpoint("DELETE", one, self.delete, "openai", example_path=kept,
                     outcomes=(Outcome("it is forgotten", shapes.DeletedResponse),)),
            Endpoint("POST", one + "/cancel", self.cancel, "openai", takes_json=False,
                     example_path=kept + "/cancel", errors=(400,)),
            Endpoint("GET", one + "/input_items", self.input_items, "openai", parameters=PAGE,
                     example_path=kept + "/input_items",
                     outcomes=(Outcome("one page", shapes.InputItems),)),
        ]  # fmt: skip

    async def create(self, exchange: Exchange) -> None:
        """Make a response, streamed or not."""
        body = exchange.body
        request = openai_responses.decode_request(body)
        if request.background:
            said = "background responses are not supported"
            raise InvalidRequest(said, reason="unsupported_parameter", param="background")
        if request.has_routing_fields():
            body = strip_routing_fields(body)
        if request.previous_response_id:
            body = await self._continued(body, request.previous_response_id)
        call = self._gateway.new_call(
            exchange,
            model=request.model,
            body=body,
            stream=bool(request.stream),
            affinity=request.affinity,
        )
        call.dialect = Dialect.OPENAI_RESPONSES
        call.usage_wanted = request.usage_wanted
        if request.store is False:
            self._gateway.submit(Delivery(self._gateway, exchange, call))
        else:
            self._gateway.submit(KeptDelivery(self._gateway, exchange, call, self.keep))

    async def get(self, exchange: Exchange) -> None:
        """Answer a kept response."""
        if _query(exchange.head.query).get("stream") == "true":
            said = "a kept response cannot be streamed again"
            raise InvalidRequest(said, reason="unsupported_parameter", param="stream")
        kept = await self._kept(exchange.head.params["id"])
        exchange.respond(200, bytes(kept.response), extra=id_line(exchange.head))

    async def delete(self, exchange: Exchange) -> None:
        """Forget a kept response."""
        name = exchange.head.params["id"]
        await self._kept(name)
        if not await self._store.put(TABLE, name, b"", 0):
            raise _unavailable()
        gone = orjson.dumps({"id": name, "object": "response", "deleted": True})
        exchange.respond(200, gone, extra=id_line(exchange.head))

    async def cancel(self, exchange: Exchange) -> None:
        """Refuse: only background responses can be cancelled, and there are none."""
        await self._kept(exchange.head.params["id"])
        raise InvalidRequest("only background responses can be cancelled", reason="not_background")

    async def input_items(self, exchange: Exchange) -> None:
        """List what a kept response was made of, newest first unless asked otherwise."""
        name = exchange.head.params["id"]
        items = [
            {"id": f"item_{name}_{i}"} | item
            for i, item in enumerate((await self._kept(name)).input)
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
            if not await self._store.put(TABLE, name, record, self._config.age_s):
                self._log.warning("response_not_kept", call_id=call.id, response_id=name)
        then()

    async def _kept(self, name: str) -> Kept:
        found = await self._find(name)
        if found is None:
            said = f"response {name[:64]!r} was not found"
            raise NotFound(said, reason="response_not_found", param="response_id")
        return found

    async def _find(self, name: str) -> Kept | None:
        if not _ID.fullmatch(name):
            return None
        answer = await self._gateway.ask_store(TABLE, name)
        if answer is None:
            raise _unavailable()
        return None if answer[0] is None else msgspec.json.decode(answer[0], type=Kept)

    async def _continued(self, body: bytes, name: str) -> bytes:
        """The body with the kept response and its input written out before its own input."""
        kept = await self._find(name)
        if kept is None:
            return body
        fields = orjson.loads(body)
        del fields["previous_response_id"]
        said = msgspec.json.decode(kept.response, type=_Output).output
        fields["input"] = [*kept.input, *said, *openai_responses.input_items(body)]
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
