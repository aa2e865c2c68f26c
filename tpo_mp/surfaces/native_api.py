"""The native family: prompts answered at once or later, and results.

``/v1/prompt`` waits for its answer; ``/api/v1/infer`` answers an id whose result any worker can
fetch.  Bodies are strict: an unknown field is refused with its name.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.dialects import native, shapes
from tpo_mp.errors import InvalidRequest, NotFound
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.native_calls import native_call
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call

MAX_WAIT_S = 300.0
MAX_DLQ_PAGE = 1000
PREFER = Parameter("prefer", "`respond-async`: answer at once with the record to ask for later; "
                   "`wait=SECONDS` beside it: after that long.", place="header")  # fmt: skip
WAIT = Parameter("wait", "Seconds to wait for the call to finish.",
                 Annotated[float, Meta(ge=0, le=MAX_WAIT_S)])  # fmt: skip
PAGE = (
    Parameter("limit", "Most letters to list; 1000 unless given.",
              Annotated[int, Meta(ge=1, le=10_000)]),
    Parameter("after", "The `next` of the page before.", Annotated[int, Meta(ge=0, le=1 << 62)]),
)  # fmt: skip
_PREFER_WAIT = re.compile(rb"\bwait\s*=\s*(\d{1,9})\b")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling used when a native request does not say."""

    max_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Tokens of a native reply when it does not say; omitted: as its "
            "backend's kind has it, mostly 256."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(
            description="Temperature of native requests that do not say; omitted: as its "
            "backend's kind has it, mostly 0.7."
        ),
    ] = None


class NativeApi:
    """Routes under ``/api/v1`` and ``/v1/prompt``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        asked, hello = native.PromptRequest, {"prompt": "hello"}
        record = shapes.PromptRecord
        streamed = Outcome("`start`, `token`…, then `done` or `error`", media=EVENTS)
        accepted = Outcome("not finished within the time that `wait` or `prefer` gave", record, 202)
        return [
            Endpoint(
                "POST", "/v1/prompt", self.prompt, "native", max_body_bytes=0, infers=True,
                request=asked, example=hello, parameters=(PREFER, WAIT),
                outcomes=(Outcome("the finished record", record), accepted, streamed),
            ),
            Endpoint(
                "POST", "/api/v1/infer", self.infer, "native", max_body_bytes=0, infers=True,
                request=asked, example=hello, parameters=(PREFER, WAIT),
                outcomes=(Outcome("the record of the call that runs now", record), accepted,
                          streamed),
            ),
            Endpoint(
                "GET", "/api/v1/result/{id}", self.result, "native",
                example_path="/api/v1/result/$CALL_ID", parameters=(WAIT,),
                outcomes=(Outcome("the finished record", record),
                          Outcome("not finished yet", record, 202)),
            ),
            *Endpoint("GET", "/api/v1/status/{id}", self.status, "native",
                      example_path="/api/v1/status/$CALL_ID",
                      outcomes=(Outcome("the record", record),)).at("/v1/status/{id}"),
        ]  # fmt: skip

    def prompt(self, exchange: Exchange) -> object:
        """Answer a prompt in this response, unless the client prefers to come back."""
        wait_s = _patience(exchange)
        if wait_s is not None:
            return self._accept(exchange, wait_s, unfinished=202)
        request, call = self._call(exchange)
        if call.stream:
            self._stream(exchange, request, call, detached=False)
            return None
        self._gateway.submit(
            NativeDelivery(self._gateway, exchange, call, request.session or call.session)
        )
        return None

    def _stream(
        self, exchange: Exchange, request: native.PromptRequest, call: Call, *, detached: bool
    ) -> None:
        session = request.session or call.session
        NativeStream(self._gateway, exchange, call, session, detached=detached).run()

    def infer(self, exchange: Exchange) -> object:
        """Accept a prompt whose result is fetched by id, or whose stream is followed."""
        later = b"respond-async" in exchange.head.headers.get(b"prefer", b"").lower()
        return self._accept(exchange, _patience(exchange) or 0.0, unfinished=202 if later else 200)

    def _accept(self, exchange: Exchange, wait_s: float, *, unfinished: int) -> object:
        """Run a call for later; answer its record once final, or as it stands after ``wait_s``."""
        request, call = self._call(exchange)
        if call.stream:
            if wait_s:
                raise InvalidRequest("a stream is not waited for: drop wait", param="wait")
            self._stream(exchange, request, call, detached=True)
            return None
        session = request.session or call.session
        record = self._gateway.accept(
            NativeDelivery(self._gateway, exchange, call, session, detached=True), session or ""
        )
        exchange.on_disconnect = None
        if wait_s:
            return self._wait(exchange, call, wait_s, unfinished)
        self._accepted(exchange, call, orjson.dumps(record), unfinished)
        return None

    async def _wait(self, exchange: Exchange, call: Call, wait_s: float, unfinished: int) -> None:
        record = await self._gateway.result(call.id, wait_s)
        if record is None:
            raise NotFound("no such request", reason="request_not_found")
        self._accepted(exchange, call, record, unfinished if _unfinished(record) else 200)

    def _accepted(self, exchange: Exchange, call: Call, record: bytes, status: int) -> None:
        request_id = (call.client_request_id or call.id).encode()
        exchange.respond(
            status,
            record,
            extra=b"x-request-id: %b\r\nx-tpo-call-id: %b\r\nlocation: /api/v1/result/%b\r\n"
            % (request_id, call.id.encode(), call.id.encode()),
        )

    def _call(self, exchange: Exchange) -> tuple[native.PromptRequest, Call]:
        request = native.decode_request(exchange.body)
        config = self._config
        call = native_call(
            self._gateway,
            exchange,
            request,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stream=bool(request.stream),
        )
        return request, call

    async def result(self, exchange: Exchange) -> None:
        """Answer the record of an accepted call, 202 while it is not finished."""
        query = given.parameters(exchange.head)
        wait_s = given.number(query, "wait", 0.0, MAX_WAIT_S)
        record = await self._record(exchange, wait_s)
        exchange.respond(202 if _unfinished(record) else 200, record, extra=id_line(exchange.head))

    async def status(self, exchange: Exchange) -> None:
        """Answer the record of an accepted call as it stands, finished or not."""
        record = await self._record(exchange, 0.0)
        exchange.respond(200, record, extra=id_line(exchange.head))

    async def _record(self, exchange: Exchange, wait_s: float) -> bytes:
        call_id = exchange.head.params["id"]
        if self._gateway.owns(exchange.head, call_id):
            record = await self._gateway.result(call_id, wait_s)
            if record is not None:
                return record
        raise NotFound("no such request", reason="request_not_found")


class _Status(Struct):
    status: str


_status = msgspec.json.Decoder(_Status).decode


def _unfinished(record: bytes) -> bool:
    return _status(record).status in ("processing", "pending")


def _patience(exchange: Exchange) -> float | None:
    """Seconds the client waits for a call that it may also fetch later; ``None``: for ever.

    ``?wait=`` says it, or RFC 7240's ``Prefer: respond-async, wait=SECONDS``.
    """
    head = exchange.head
    prefer = head.headers.get(b"prefer", b"").lower()
    if head.query:
        query = given.parameters(exchange.head)
        if "wait" in query:
            return given.number(query, "wait", 0.0, MAX_WAIT_S)
    if b"respond-async" not in prefer:
        return None
    asked = _PREFER_WAIT.search(prefer)
    return min(float(asked[1]), MAX_WAIT_S) if asked else 0.0


FEATURE = Feature(Config, NativeApi)
