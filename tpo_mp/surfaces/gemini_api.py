"""The Gemini family: ``models/{model}:generateContent`` and what Google's clients call beside it.

The path names model and method; a stream is events with ``alt=sse`` and one JSON array without.
``tpo-mp simulate`` serves it; in a gateway it is served where ``[surfaces.gemini_api]`` stands,
for the backends that speak this dialect.

Source: Gemini API reference (``v1beta``).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import orjson
from msgspec import Struct

from tpo_mp.dialects import gemini, gemini_wire
from tpo_mp.dialects.body import with_fields
from tpo_mp.dialects.codec import RequestHead
from tpo_mp.dialects.gemini import GeminiRequest
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import InvalidRequest, NotFound, TpoError
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.http.head import Head
from tpo_mp.http.query import choice, parameters, whole
from tpo_mp.pipeline.delivery import SSE_LINES, Delivery
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.recall import ANSWERED
from tpo_mp.pipeline.ways import Way
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator.catalog import GOOGLE_METHODS, traits_of
from tpo_mp.types import Call, Dialect, Reply

METHODS: Final = {
    "generateContent": Dialect.GEMINI,
    "streamGenerateContent": Dialect.GEMINI,
    "countTokens": Dialect.GEMINI_COUNT,
    "embedContent": Dialect.GEMINI_EMBEDDINGS,
    "batchEmbedContents": Dialect.GEMINI_EMBEDDINGS,
}
_ARRAY: Final = b"application/json; charset=UTF-8"
_ALT: Final = Parameter("alt", "`sse` streams events; the default is a JSON array.")
_KEY: Final = Parameter("key", "The API key, where no header has it.")
_KEY_HEADER: Final = Parameter("x-goog-api-key", "The API key.", place="header")
_PAGE: Final = (
    Parameter("pageSize", "Most models of one page, at most 1000.", int),
    Parameter("pageToken", "Where the next page begins, as the last one told."),
)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class GeminiApi:
    """Routes under ``/v1beta`` and ``/v1`` that Google's clients call."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        act = Endpoint(
            "POST", "/v1beta/models/{model}", self.act, "google", max_body_bytes=0, infers=True,
            parameters=(_ALT, _KEY, _KEY_HEADER), request=dict[str, Any],
            outcomes=(Outcome("the method's answer", dict[str, Any]),
                      Outcome("with `streamGenerateContent?alt=sse`, its events", media=EVENTS)),
            example={"contents": [{"parts": [{"text": "hello"}]}]},
            example_path="/v1beta/models/gemini-2.5-flash:generateContent",
        )  # fmt: skip
        return [
            *act.at("/v1/models/{model}"),
            Endpoint("GET", "/v1beta/models", self.models, "google",
                     parameters=(*_PAGE, _KEY, _KEY_HEADER),
                     outcomes=(Outcome("the list", dict[str, Any]),)),
            Endpoint("GET", "/v1beta/models/{model}", self.model, "google",
                     parameters=(_KEY, _KEY_HEADER),
                     example_path="/v1beta/models/gemini-2.5-flash",
                     outcomes=(Outcome("the model", dict[str, Any]),)),
        ]  # fmt: skip

    def act(self, exchange: Exchange) -> None:
        """Run the method that the path names after its colon."""
        head = exchange.head
        model, _, method = head.params["model"].rpartition(":")
        dialect = METHODS.get(method)
        if dialect is None or not model:
            raise NotFound(f"the method {method[:64]!r} is none of {', '.join(METHODS)}",
                           reason="method_not_found")  # fmt: skip
        query = parameters(head)
        stream = method == "streamGenerateContent"
        events = choice(query, "alt", ("sse", "json")) == "sse"
        if events and not stream:
            raise InvalidRequest("alt=sse is for streamGenerateContent", param="alt")
        way = (_ARRAYS if stream and not events else _WAYS)[dialect]
        known = self._gateway.recall(exchange, way)
        if known is ANSWERED:
            return
        if known is None:
            body = with_fields(exchange.body or b"{}", model=model, stream=stream or None)
            request: RequestHead = GeminiRequest(model=model, stream=stream)
        else:
            request, body = known.request, known.body
        call = way.call(self._gateway, exchange, request, body, known)
        way.submit(self._gateway, exchange, call)

    async def models(self, exchange: Exchange) -> None:
        """List the models a client may name."""
        query = parameters(exchange.head)
        size = whole(query, "pageSize", 50, least=1, most=1000)
        token = query.get("pageToken", "0")
        start = int(token) if token.isdecimal() and len(token) < 10 else -1
        names: Sequence[str] = await self._gateway.models()
        if start < 0 or start > len(names):
            raise InvalidRequest("pageToken is none that a list gave", param="pageToken")
        found: dict[str, Any] = {"models": [card(name) for name in names[start : start + size]]}
        if start + size < len(names):
            found["nextPageToken"] = str(start + size)
        exchange.respond(200, orjson.dumps(found), extra=id_line(exchange.head))

    async def model(self, exchange: Exchange) -> None:
        """Describe one model; any name a backend serves is known."""
        name = exchange.head.params["model"]
        if not self._gateway.knows_model(name):
            raise NotFound(f"models/{name[:120]} is not found for API version v1beta",
                           reason="model_not_found")  # fmt: skip
        exchange.respond(200, orjson.dumps(card(name)), extra=id_line(exchange.head))


def card(name: str) -> dict[str, Any]:
    """A model as Google describes one."""
    traits = traits_of(name)
    out: dict[str, Any] = {"name": f"models/{name}", "version": "001", "displayName": name}
    if traits.context:
        out["inputTokenLimit"] = traits.context
    if traits.most_output:
        out["outputTokenLimit"] = traits.most_output
    return out | {"supportedGenerationMethods": list(GOOGLE_METHODS[traits.kind])}


class GeminiDelivery(Delivery):
    """Delivery of a call whose body is more than its request's: the path says model and form."""

    __slots__ = ("_asked",)

    def __init__(self, gateway: Gateway, exchange: Exchange, call: Call) -> None:
        super().__init__(gateway, exchange, call)
        self._asked = exchange.body

    @property
    def asked(self) -> bytes:
        """The body of the client's request."""
        return self._asked


class ArrayDelivery(GeminiDelivery):
    """A stream as one JSON array: each event's data is an element of it."""

    __slots__ = ("_cutter", "_told")

    def __init__(self, gateway: Gateway, exchange: Exchange, call: Call) -> None:
        super().__init__(gateway, exchange, call)
        self._cutter = EventCutter()
        self._told = False

    def begin(self, reply: Reply) -> None:
        """Send the head; the array opens with its first element."""
        self.started = True
        self.status = reply.status
        lines = self.lines(reply) + SSE_LINES
        self.exchange.begin(reply.status, _ARRAY, lines, reply.stream)

    @staticmethod
    def told(_content_type: bytes, body: bytes, /) -> tuple[bytes, bytes]:
        """A stream that is whole already, as an array."""
        found = [data for _, data in EventCutter().feed(body)]
        return _ARRAY, b"[%b]" % b",\r\n".join(found)

    def data(self, chunk: bytes) -> None:
        """Send the data of whole events."""
        found = [data for _, data in self._cutter.feed(chunk)]
        if not found:
            return
        out = (b",\r\n" if self._told else b"[") + b",\r\n".join(found)
        self._told = True
        self.bytes_out += len(out)
        self.exchange.write(out)

    def end(self, error: TpoError | None) -> None:
        """Close the array, unless the connection is to be cut."""
        if error is None and not self.settled:
            self._close()
        super().end(error)

    def send_error_event(self, error: TpoError) -> None:
        """The error is the last element."""
        self.data(gemini_wire.error_event(error))
        self._close()
        self.exchange.finish()

    def _close(self) -> None:
        self.exchange.write(b"]" if self._told else b"[]")


class _GeminiWay(Way):
    """One method's, in one form: the path and the query say which of which model."""

    __slots__ = ()

    def __init__(self, dialect: Dialect, delivery: type[Delivery]) -> None:
        super().__init__(dialect, gemini.decode_request, delivery, (b"x-goog-api-key",))

    def dress(self, call: Call, head: Head) -> None:
        """A key that is not ours goes upstream."""
        key = head.headers.get(b"x-goog-api-key") or parameters(head).get("key", "").encode()
        if call.authorization is None and key:
            call.authorization = b"Bearer " + key

    def place(self, head: Head) -> Hashable:
        """What is asked of which model, and with whose key."""
        return head.path, head.query, head.headers.get(b"x-goog-api-key")


_WAYS: Final = {dialect: _GeminiWay(dialect, GeminiDelivery) for dialect in METHODS.values()}
_ARRAYS: Final = {Dialect.GEMINI: _GeminiWay(Dialect.GEMINI, ArrayDelivery)}


FEATURE = Feature(Config, GeminiApi)
