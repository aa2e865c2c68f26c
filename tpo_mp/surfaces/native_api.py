"""The native family: prompts answered at once or later, results, dead letters.

``/v1/prompt`` waits for its answer; ``/api/v1/infer`` answers an id whose result any worker can
fetch.  Bodies are strict: an unknown field is refused with its name.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.dialects import native, shapes
from tpo_mp.errors import InvalidRequest, NotFound, Shed
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import LETTERS, LetterQuery
from tpo_mp.types import Call

MAX_WAIT_S = 300.0
MAX_DLQ_PAGE = 1000
PREFER = Parameter("prefer", "`respond-async`: answer at once with the record to ask for later.",
                   place="header")  # fmt: skip
WAIT = Parameter("wait", "Seconds to wait for the call to finish.",
                 Annotated[float, Meta(ge=0, le=MAX_WAIT_S)])  # fmt: skip
PAGE = (
    Parameter("limit", "Most letters to list; 1000 unless given.",
              Annotated[int, Meta(ge=1, le=10_000)]),
    Parameter("after", "The `next` of the page before.", Annotated[int, Meta(ge=0, le=1 << 62)]),
)  # fmt: skip


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling used when a native request does not say."""

    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000,
        description="Tokens of a native reply when the request does not say.")] = 256  # fmt: skip
    temperature: Annotated[float, Meta(ge=0, le=2,
        description="Temperature of native requests that do not say.")] = 0.7  # fmt: skip


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
        accepted = Outcome("accepted, as the header `prefer: respond-async` asks", record, 202)
        return [
            Endpoint(
                "POST", "/v1/prompt", self.prompt, "native", max_body_bytes=0, infers=True,
                request=asked, example=hello, parameters=(PREFER,),
                outcomes=(Outcome("the finished record", record), accepted, streamed),
            ),
            Endpoint(
                "POST", "/api/v1/infer", self.infer, "native", max_body_bytes=0, infers=True,
                request=asked, example=hello, parameters=(PREFER,),
                outcomes=(Outcome("the record of the call that runs now", record), accepted,
                          streamed),
            ),
            Endpoint("POST", "/api/v1/stream", self.stream, "native", max_body_bytes=0, infers=True,
                     request=asked, example=hello, outcomes=(streamed,)),
            Endpoint(
                "GET", "/api/v1/result/{id}", self.result, "native",
                example_path="/api/v1/result/$CALL_ID", parameters=(WAIT,),
                outcomes=(Outcome("the finished record", record),
                          Outcome("not finished yet", record, 202)),
            ),
            *Endpoint("GET", "/api/v1/status/{id}", self.status, "native",
                      example_path="/api/v1/status/$CALL_ID",
                      outcomes=(Outcome("the record", record),)).at("/v1/status/{id}"),
            *Endpoint(
                "GET", "/api/v1/dlq", self.dead_letters, "native", parameters=PAGE,
                outcomes=(Outcome("one page", shapes.LetterPage),),
            ).at("/v1/dlq"),
            Endpoint("GET", "/api/v1/dlq/{id}", self.dead_letter, "native",
                     example_path="/api/v1/dlq/$LETTER_ID",
                     outcomes=(Outcome("the letter", shapes.DeadLetterRecord),)),
        ]  # fmt: skip

    def prompt(self, exchange: Exchange) -> None:
        """Answer a prompt in this response, unless the client prefers to come back."""
        if b"respond-async" in exchange.head.headers.get(b"prefer", b"").lower():
            self.infer(exchange)
            return
        request, call = self._call(exchange)
        if call.stream:
            self._stream(exchange, request, call)
            return
        self._gateway.submit(
            NativeDelivery(self._gateway, exchange, call, request.session or call.session)
        )

    def stream(self, exchange: Exchange) -> None:
        """Answer a prompt as events: start, token…, done or error."""
        request, call = self._call(exchange, stream=True)
        self._stream(exchange, request, call)

    def _stream(self, exchange: Exchange, request: native.PromptRequest, call: Call) -> None:
        session = request.session or call.session
        self._gateway.submit(NativeStream(self._gateway, exchange, call, session))

    def infer(self, exchange: Exchange) -> None:
        """Accept a prompt whose result is fetched by id."""
        request, call = self._call(exchange)
        if call.stream:
            self._stream(exchange, request, call)
            return
        session = request.session or call.session
        record = self._gateway.accept(
            NativeDelivery(self._gateway, exchange, call, session, detached=True), session or ""
        )
        later = b"respond-async" in exchange.head.headers.get(b"prefer", b"").lower()
        request_id = (call.client_request_id or call.id).encode()
        exchange.on_disconnect = None
        exchange.respond(
            202 if later else 200,
            orjson.dumps(record),
            extra=b"x-request-id: %b\r\nx-tpo-call-id: %b\r\nlocation: /api/v1/result/%b\r\n"
            % (request_id, call.id.encode(), call.id.encode()),
        )

    def _call(
        self, exchange: Exchange, *, stream: bool = False
    ) -> tuple[native.PromptRequest, Call]:
        request = native.decode_request(exchange.body)
        model = request.model or self._gateway.default_model()
        if model is None:
            raise InvalidRequest("model is required: no backend names one", param="model")
        stream = stream or bool(request.stream)
        body = native.to_chat(
            request, model, self._config.max_tokens, self._config.temperature, stream=stream
        )
        call = self._gateway.new_call(
            exchange, model=model, body=body, stream=stream, affinity=request.session
        )
        call.usage_wanted = stream
        seconds = request.deadline_secs or request.timeout_seconds
        if seconds is not None:
            call.deadline = min(call.deadline, call.started_at + seconds)
        return request, call

    async def result(self, exchange: Exchange) -> None:
        """Answer the record of an accepted call, 202 while it is not finished."""
        query = _query(exchange)
        wait_s = _number(query, "wait", 0.0, MAX_WAIT_S)
        record = await self._gateway.result(exchange.head.params["id"], wait_s)
        if record is None:
            raise NotFound("no such request", reason="request_not_found")
        unfinished = msgspec.json.decode(record, type=_Status).status in ("processing", "pending")
        exchange.respond(202 if unfinished else 200, record, extra=id_line(exchange.head))

    async def status(self, exchange: Exchange) -> None:
        """Answer the record of an accepted call as it stands, finished or not."""
        record = await self._gateway.result(exchange.head.params["id"], 0.0)
        if record is None:
            raise NotFound("no such request", reason="request_not_found")
        exchange.respond(200, record, extra=id_line(exchange.head))

    async def dead_letters(self, exchange: Exchange) -> None:
        """List dead letters, newest first; reading does not remove them."""
        query = _query(exchange)
        limit = _whole(query, "limit", MAX_DLQ_PAGE, least=1, most=10_000)
        after = _whole(query, "after", 0, least=0, most=1 << 62) if "after" in query else None
        await self._from_store(exchange, LetterQuery(limit=limit, after=after).key())

    async def dead_letter(self, exchange: Exchange) -> None:
        """Show one dead letter with its payload."""
        call_id = exchange.head.params["id"]
        if CallIds.parse(call_id) is None:
            raise NotFound("no such dead letter", reason="not_found")
        await self._from_store(exchange, call_id)

    async def _from_store(self, exchange: Exchange, key: str) -> None:
        answer = await self._gateway.ask_store(LETTERS, key)
        if answer is None:
            raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)
        if answer[0] is None:
            raise NotFound("no such dead letter", reason="not_found")
        exchange.respond(200, answer[0], extra=id_line(exchange.head))


class _Status(Struct):
    status: str


def _query(exchange: Exchange) -> dict[str, str]:
    pairs = parse_qsl(exchange.head.query.decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise InvalidRequest("a query parameter is given twice")
    return query


def _number(query: dict[str, str], name: str, default: float, most: float) -> float:
    raw = query.get(name)
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidRequest(f"{name} must be a number from 0 to {most:g}", param=name)
    return value


def _whole(query: dict[str, str], name: str, default: int, *, least: int, most: int) -> int:
    raw = query.get(name, str(default))
    if not (raw.isascii() and raw.isdigit() and len(raw) < 20 and least <= int(raw) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}", param=name)
    return int(raw)


FEATURE = Feature(Config, NativeApi)
