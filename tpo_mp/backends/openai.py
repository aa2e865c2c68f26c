"""Any OpenAI-compatible server: unary and streamed chat over the gateway's own client.

Bytes pass untouched unless the model is mapped or a usage count must be asked for.
An upstream's refusal of the *request* (400, 404, 413, 422, 429 …) reaches the client as it came;
its refusal of *our* credential does not, because the client can do nothing about it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta

from tpo_mp import __version__
from tpo_mp.config.values import Secret, Timeouts
from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.errors import BackendFailure, ConfigError, Shed, TpoError
from tpo_mp.http.upstream import Deadlines, Origin, ResponseHead, UpstreamExchange
from tpo_mp.pipeline.openai_answer import Answer
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig, Env, Feature
from tpo_mp.types import Call, Reply


class Config(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``openai``."""

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "https://api.openai.com/v1"
    )
    api_key: Annotated[
        Secret | None, Meta(description="Credential sent upstream; omitted: none is sent.")
    ] = None
    headers: Annotated[dict[str, str], Meta(description="Extra request headers.")] = {}  # noqa: RUF012 - frozen
    query: Annotated[dict[str, str], Meta(description="Extra query parameters.")] = {}  # noqa: RUF012 - frozen
    ca_file: Annotated[str | None, Meta(description="PEM file of trusted authorities.")] = None
    timeouts: Timeouts = Timeouts()
    max_concurrent: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Connections per shard; 0 is unlimited, more calls wait.",
        ),
    ] = 0
    max_idle: Annotated[
        int, Meta(ge=0, le=65_536, description="Idle connections kept per shard.")
    ] = 1024
    include_usage: Annotated[
        bool, Meta(description="Ask streams for token counts when the client did not.")
    ] = True


_PATHS = {"chat": "/chat/completions"}


class OpenAIBackend:
    """One upstream speaking the OpenAI API."""

    def __init__(self, config: Config, env: Env) -> None:
        self.name = config.name
        self._config = config
        self._env = env
        self._origin: Origin | None = None
        self._map = config.model_map
        url = urlsplit(config.base_url)
        self._host = url.netloc
        query = f"?{urlencode(config.query)}" if config.query else ""
        self._requests = {
            api: self._template("POST", url.path.rstrip("/") + path + query)
            for api, path in _PATHS.items()
        }
        self._models_request = self._template("GET", url.path.rstrip("/") + "/models" + query)
        self._forward_client = config.api_key is not None and config.api_key.from_client

    def _template(self, method: str, target: str) -> bytes:
        config = self._config
        lines = [
            f"{method} {target} HTTP/1.1",
            f"host: {self._host}",
            "accept: */*",
            f"user-agent: tpo-mp/{__version__}",
        ]
        if config.api_key is not None and not config.api_key.from_client:
            lines.append(f"authorization: Bearer {config.api_key.reveal()}")
        for name, value in config.headers.items():
            if not name or any(c in name + value for c in "\r\n\0") or ":" in name:
                raise ConfigError(f"backends.{self.name}.headers: {name!r} is not a valid header")
            lines.append(f"{name}: {value}")
        if method == "POST":
            lines.append("content-type: application/json")
        head = "\r\n".join(lines).encode("latin-1").replace(b"%", b"%%")
        return head + b"\r\n%bcontent-length: %d\r\n\r\n%b"

    def _connect(self) -> Origin:
        """The pool, made on first use because it belongs to the running loop."""
        if self._origin is None:
            config, url = self._config, urlsplit(self._config.base_url)
            tls = (
                ssl.create_default_context(cafile=config.ca_file) if url.scheme == "https" else None
            )
            t = config.timeouts
            self._origin = Origin(
                host=url.hostname or "",
                port=url.port or (443 if tls else 80),
                tls=tls,
                deadlines=Deadlines(t.connect_s, t.first_byte_s, t.idle_s, t.total_s),
                loop=asyncio.get_running_loop(),
                wheel=self._env.timers,
                max_idle=config.max_idle,
                max_connections=config.max_concurrent,
                room=self._env.rooms["inference"],
            )
        return self._origin

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Send the call; resolves with the whole reply, or with the first chunk of a stream."""
        origin = self._origin or self._connect()
        body = call.body
        if self._map:
            upstream_model = self._map.get(call.model)
            if upstream_model is not None:
                body = dialect.with_model(body, upstream_model)
        strip = False
        if call.stream and self._config.include_usage and not call.usage_wanted:
            body = dialect.with_usage(body, b'"stream_options"' in body)
            strip = True
        extra = b""
        if call.traceparent is not None:
            extra = b"traceparent: %b\r\n" % call.traceparent
        if self._forward_client and call.authorization is not None:
            extra += b"authorization: %b\r\n" % call.authorization
        request = self._requests[call.api] % (extra, len(body), body)
        clock = self._env.clock
        answer = Answer(call, request, self.name, clock, strip, self._forward_client)
        call.upstream_at = clock()
        call.abort = answer.stop
        try:
            origin.send(answer)
        except OverflowError:
            said = f"backend {self.name!r} has too many calls waiting"
            raise Shed(said, reason="backpressure", retry_after_s=1) from None
        return answer.promise

    async def list_models(self) -> Sequence[str]:
        """Ask ``GET /models``."""
        asked = _Whole(self._models_request % (b"", 0, b""))
        self._connect().send(asked)
        body = await asked.promise
        try:
            listed = msgspec.json.decode(body, type=_ModelList)
        except msgspec.DecodeError as e:
            raise BackendFailure("upstream sent no model list", reason="bad_upstream_body") from e
        return [m.id for m in listed.data]

    def close(self) -> None:
        """Drop idle connections."""
        if self._origin is not None:
            self._origin.close()


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


class _Whole(UpstreamExchange):
    """One whole small body."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.promise: Promise[bytes] = Promise(self.cancel)
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0

    def whole(self, head: ResponseHead, body: bytes) -> None:
        self._status = head.status
        self._parts = [body]
        self.ended()

    def started(self, head: ResponseHead) -> None:
        self._status = head.status

    def data(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > 4 << 20:
            self.cancel()
            self.failed(BackendFailure("upstream's list is too long", reason="bad_upstream_body"))
        else:
            self._parts.append(chunk)

    def ended(self) -> None:
        if self._status == 200:
            self.promise.resolve(b"".join(self._parts))
        else:
            self.promise.reject(
                BackendFailure(f"upstream answered {self._status}", reason="upstream_error")
            )

    def failed(self, error: TpoError) -> None:
        self.promise.reject(error)


def build(config: Config, env: Env) -> OpenAIBackend:
    """Check what only the file system knows, and build."""
    if config.ca_file is not None and not Path(config.ca_file).is_file():
        raise ConfigError(f"backends.{config.name}.ca_file: {config.ca_file!r} is not a file")
    return OpenAIBackend(config, env)


FEATURE = Feature(Config, build)
