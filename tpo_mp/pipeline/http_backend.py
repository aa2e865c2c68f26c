"""What every backend behind HTTP shares: one origin, request templates, one answer per call.

Bytes pass untouched unless the model is mapped or a usage count must be asked for.
An upstream's refusal of the *request* (400, 404, 413, 422, 429 …) reaches the client as it came;
its refusal of *our* credential does not, because the client can do nothing about it.

Invariants: the pool belongs to the running loop and is made on first use; a request carries our
credential, or the caller's own when so configured, never both.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta

from tpo_mp import __version__
from tpo_mp.config.problems import nearest
from tpo_mp.config.values import HealthCheck, Secret, Timeouts
from tpo_mp.dialects import openai_wire
from tpo_mp.dialects.body import with_fields
from tpo_mp.errors import BackendFailure, ConfigError, Shed, TpoError
from tpo_mp.http.engine_links import EngineLine, EngineOrigin
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.http.upstream import Deadlines, Origin, UpstreamExchange
from tpo_mp.ports import BackendConfig, Env, Probe
from tpo_mp.types import Call, Dialect, Reply

from .answer import Answer
from .codecs import codec
from .gathered import gathered, gathers
from .promise import Promise
from .reworded import RewordedAnswer, Worded

MAX_LIST_BYTES = 4 << 20
_ASKS_USAGE = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)


class HttpBackendConfig(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every backend behind HTTP."""

    CHECKED: ClassVar[bool] = False
    """Whether one of this kind is asked if it is well unless its config says no."""
    HEALTH_PATH: ClassVar[str] = "models"
    METRICS_PATH: ClassVar[str] = ""
    AUTH: ClassVar[tuple[str, str]] = ("authorization", "Bearer {}")
    """The header that carries the key."""

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")]
    api_key: Annotated[
        Secret | None, Meta(description="Credential sent upstream; omitted: none is sent.")
    ] = None
    headers: Annotated[dict[str, str], Meta(description="Extra request headers.")] = {}  # noqa: RUF012 - frozen
    query: Annotated[dict[str, str], Meta(description="Extra query parameters.")] = {}  # noqa: RUF012 - frozen
    ca_file: Annotated[str | None, Meta(description="PEM file of trusted authorities.")] = None
    timeouts: Timeouts = Timeouts()
    stream_unary: Annotated[
        bool,
        Meta(
            description="Ask for whole replies as streams and put them together, so that an engine "
            "that computes on for a client that left stops; calls for log probabilities excepted."
        ),
    ] = False
    max_idle: Annotated[
        int, Meta(ge=0, le=65_536, description="Idle connections kept per shard.")
    ] = 1024
    health: HealthCheck = HealthCheck()
    metrics_path: Annotated[
        str | None,
        Meta(
            description="Page of the engine's own metrics (vLLM's or llama.cpp's), which routes by "
            "load go by too; empty: none [an engine: /metrics; any other: none]."
        ),
    ] = None
    metrics_every_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="Seconds between two looks at that page.")
    ] = 1.0

    @classmethod
    def known_apis(cls) -> tuple[str, ...]:
        """What ``apis`` may name; empty: whoever builds it knows."""
        return ()

    def problems(self) -> Iterable[tuple[str, str]]:
        """APIs that nobody of its kind has."""
        known = self.known_apis()
        for index, api in enumerate(self.apis):
            if known and api not in known:
                near = nearest(api, known)
                said = f"{api!r} is none of {', '.join(known)}"
                yield f"apis[{index}]", f"{said}; {near}" if near else said

    def probe(self) -> Probe | None:
        """How it is asked whether it is well: with the headers and the key that calls have."""
        check = self.health
        checked = self.CHECKED if check.enabled is None else check.enabled
        metrics = self.METRICS_PATH if self.metrics_path is None else self.metrics_path
        slots = self.slots_page()
        if not checked and not metrics and not slots:
            return None
        headers = dict(self.headers)
        if self.api_key is not None and not self.api_key.from_client:
            name, value = self.AUTH
            headers[name] = value.format(self.api_key.reveal())
        return Probe(
            name=self.name,
            url=self.url_of(check.path or self.HEALTH_PATH) if checked else "",
            models=self.models,
            model_map=self.model_map,
            headers=tuple(headers.items()),
            ca_file=self.ca_file,
            interval_s=check.interval_s,
            timeout_s=check.timeout_s,
            rise=check.rise,
            fall=check.fall,
            metrics_url=self.url_of(metrics) if metrics else "",
            metrics_every_s=self.metrics_every_s,
            slots_url=self.url_of(slots) if slots else "",
            held_url=self.url_of(held) if slots and (held := self.held_page()) else "",
        )

    def slots_page(self) -> str:
        """Where the server says how many slots it has; empty: nobody has to know."""
        return ""

    def held_page(self) -> str:
        """Where the server says what its slots hold; empty: that is not asked."""
        return ""

    def url_of(self, path: str) -> str:
        """A page of the server (with a slash first), or one below ``base_url``."""
        url = urlsplit(self.base_url)
        if path.startswith("/"):
            return f"{url.scheme}://{url.netloc}{path}"
        query = f"?{urlencode(self.query)}" if self.query else ""
        return f"{self.base_url.rstrip('/')}/{path}{query}"


class HttpBackend:
    """One upstream; ``dialects`` are what it speaks, the first is used for all others."""

    adds_fields = False
    """Whether ``fields`` has something to say."""

    def __init__(
        self,
        config: HttpBackendConfig,
        env: Env,
        *,
        paths: Mapping[Dialect, str],
        auth: str = "",
        fixed: Sequence[str] = (),
        include_usage: bool = False,
        worded: Mapping[Dialect, Worded] | None = None,
    ) -> None:
        """``auth`` is the credential's header line with ``{}`` for it; ``fixed`` are more lines.

        A path with a slash first is beside the version in ``base_url``, not below it; ``worded``
        are the dialects that the upstream has other words for.
        """
        if config.ca_file is not None and not Path(config.ca_file).is_file():
            said = f"backends.{config.name}.ca_file: {config.ca_file!r} is not a file"
            raise ConfigError(said)
        self.name = config.name
        self.dialects = tuple(paths)
        self._config = config
        self._env = env
        self._map = config.model_map
        self._usage = frozenset(_ASKS_USAGE) if include_usage else frozenset()
        self._worded = worded
        self._stream_unary = config.stream_unary
        self._origin: Origin | None = None
        self._line: EngineLine | None = None
        self._url = url = urlsplit(config.base_url)
        key = config.api_key
        self._client_key = key is not None and key.from_client
        self._clock = env.clock
        self._adds_lines = type(self).extra_lines is not HttpBackend.extra_lines
        lines = [
            f"host: {url.netloc}",
            "accept: */*",
            f"user-agent: tpo-mp/{__version__}",
            *fixed,
            *_extra_lines(config),
        ]
        if key is not None and not key.from_client:
            lines.append(auth.format(key.reveal()))
        query = f"?{urlencode(config.query)}" if config.query else ""
        base = url.path.rstrip("/")
        self._requests = {
            dialect: _template("POST", f"{_joined(base, path)}{query}", lines)
            for dialect, path in paths.items()
        }
        self._list_request = _template("GET", f"{base}/models{query}", lines) % (b"", 0, b"")

    def use_line(self, line: EngineLine) -> None:
        """It is an engine of this host, which can be asked over shared memory."""
        if self._line is None:
            self._line = line
            self.close()
            self._origin = None

    def _connect(self) -> Origin:
        """Make the pool."""
        config, url = self._config, self._url
        make = Origin if self._line is None else partial(self._engine_origin, self._line)
        tls = ssl.create_default_context(cafile=config.ca_file) if url.scheme == "https" else None
        t = config.timeouts
        self._origin = made = make(
            host=url.hostname or "",
            port=url.port or (443 if tls else 80),
            tls=tls,
            deadlines=Deadlines(t.connect_s, t.first_byte_s, t.idle_s, t.total_s),
            loop=asyncio.get_running_loop(),
            wheel=self._env.timers,
            max_idle=config.max_idle,
            max_connections=config.max_concurrent if isinstance(config.max_concurrent, int) else 0,
            room=self._env.rooms["inference"],
            dialled=self._env.metrics.counter(
                "tpo_upstream_connections_total",
                "Connections tried to a backend; the fewer for its calls, the more are used again.",
                backend=self.name,
            ).inc,
        )
        return made

    def _engine_origin(self, line: EngineLine, **more: Any) -> Origin:
        told = "Calls to an engine of this host, by how they were brought to it."
        by_rings, by_http = (
            self._env.metrics.counter(
                "tpo_engine_calls_total", told, backend=self.name, transport=transport
            )
            for transport in ("rings", "http")
        )
        return EngineOrigin(line, by_rings, by_http, **more)

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Send the call; resolves with the whole reply, or with the first event of a stream."""
        if self._stream_unary and gathers(call):
            return gathered(self.send, call)
        return self.send(call)

    def send(self, call: Call) -> Promise[Reply]:
        """Send it as it is to be answered, whole or as a stream."""
        origin = self._origin or self._connect()
        body, dialect = call.body, call.dialect
        if self._map:
            upstream_model = self._map.get(call.model)
            if upstream_model is not None:
                body = codec(dialect).with_model(body, upstream_model)
        if self.adds_fields:
            body = _with(body, self.fields(call))
        strip = False
        if call.stream and not call.usage_wanted and dialect in self._usage:
            body = openai_wire.with_usage(body, b'"stream_options"' in body)
            strip = True
        extra = self.extra_lines(call) if self._adds_lines else call.forward
        if self._client_key and call.authorization is not None:
            extra += self.client_line(call.authorization)
        clock = self._clock
        worded = self._worded.get(dialect) if self._worded is not None else None
        if worded is None:
            request = self._requests[dialect] % (extra, len(body), body)
            answer = Answer(call, request, self.name, clock, strip, self._client_key)
        else:
            wording = worded(body, call)
            request = self._requests[dialect] % (extra, len(wording.body), wording.body)
            answer = RewordedAnswer(
                wording, call, request, self.name, clock, strip, self._client_key
            )
        call.upstream_at = clock()
        try:
            origin.send(answer)
        except OverflowError:
            said = f"backend {self.name!r} has too many calls waiting"
            raise Shed(said, reason="backpressure", retry_after_s=1) from None
        return answer.promise

    def fields(self, call: Call) -> dict[str, object]:  # noqa: ARG002 - kinds that add some look
        """Fields that this API wants in the body besides, instead of the client's own."""
        return {}

    def extra_lines(self, call: Call) -> bytes:
        """Header lines of the call that go upstream."""
        return call.forward

    def client_line(self, credential: bytes) -> bytes:
        """The caller's credential (its Authorization value) as this API wants it."""
        return b"authorization: %b\r\n" % credential

    async def list_models(self) -> Sequence[str]:
        """Ask ``GET /models``."""
        asked = _Whole(self._list_request)
        (self._origin or self._connect()).send(asked)
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


def chosen_paths(
    config: HttpBackendConfig, known: Mapping[str, tuple[Dialect, str]], default: Sequence[str]
) -> dict[Dialect, str]:
    """Dialects and paths of the APIs the config names, else of ``default``."""
    apis = config.apis or default
    unknown = [api for api in apis if api not in known]
    if unknown:
        said = f"backends.{config.name}.apis: {unknown[0]!r} is none of {', '.join(known)}"
        raise ConfigError(said)
    return dict(known[api] for api in apis)


def _joined(base: str, path: str) -> str:
    return base.removesuffix("/v1") + path if path.startswith("/") else f"{base}/{path}"


def _with(body: bytes, fields: dict[str, object]) -> bytes:
    """The body with more fields, put at its end where it has none of them."""
    if not fields:
        return body
    end = body.rstrip()
    if any(b'"%b"' % name.encode() in body for name in fields) or end[-2:] == b"{}":
        return with_fields(body, **fields)
    return end[:-1] + b"," + msgspec.json.encode(fields)[1:]


def _template(method: str, target: str, lines: Sequence[str]) -> bytes:
    """A request with holes for extra header lines, length and body."""
    head = [f"{method} {target} HTTP/1.1", *lines]
    if method == "POST":
        head.append("content-type: application/json")
    text = "\r\n".join(head).encode("latin-1").replace(b"%", b"%%")
    return text + b"\r\n%bcontent-length: %d\r\n\r\n%b"


def _extra_lines(config: HttpBackendConfig) -> list[str]:
    lines = []
    for name, value in config.headers.items():
        if not name or any(c in name + value for c in "\r\n\0") or ":" in name:
            raise ConfigError(f"backends.{config.name}.headers: {name!r} is not a valid header")
        lines.append(f"{name}: {value}")
    return lines


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
        if self._size > MAX_LIST_BYTES:
            self.cancel()
            self.failed(BackendFailure("upstream's list is too long", reason="bad_upstream_body"))
        else:
            self._parts.append(chunk)

    def ended(self) -> None:
        if self._status == 200:
            self.promise.resolve(b"".join(self._parts))
        else:
            said = f"upstream answered {self._status}"
            self.promise.reject(BackendFailure(said, reason="upstream_error"))

    def failed(self, error: TpoError) -> None:
        self.promise.reject(error)
