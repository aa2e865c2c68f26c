"""The pipeline as a Python library: the chain of one shard inside the caller's own event loop.

::

    async with tpo_mp.spawn_pipeline("echo") as pipeline:
        reply = await pipeline.infer("three little words")
        print(reply.text)
        async for piece in pipeline.stream("and once more"):
            print(piece, end="")

Stages, routes and backends are the gateway's own, from the same config, and so is the Redis in
which hosts share answers; there is no process, port or shared file.  Calls run in the task that
makes them: cancelling the task cancels the call.

Invariants: a call is checked as the HTTP surface checks it; errors are ``tpo_mp.errors``; a stream
that is left early is cancelled upstream, and one that is read slowly pauses it.
Known weakness: nothing is durable here; the store answers that it is unavailable, and there are
neither call records nor dead letters.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, time
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import msgspec
import orjson
import structlog

from tpo_mp.config import load
from tpo_mp.config.text import Tree, read_file
from tpo_mp.config.tree import Config
from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.errors import BackendFailure, ConfigError, Draining, InvalidRequest, TpoError
from tpo_mp.http.wheel import GRAIN_S, Wheel
from tpo_mp.pipeline.delivery import as_tpo, terminal_of
from tpo_mp.pipeline.edges import make_edges
from tpo_mp.pipeline.endings import ending, tell_ended, when_over
from tpo_mp.ports import Env
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.journal import JournalSegment, SharedJournal
from tpo_mp.shm.ledger import LEDGER_ROWS, SharedLedger
from tpo_mp.shm.live import LiveSegment, LiveText
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.quotas import QUOTAS_REFUSED, QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import SCORES_REFUSED, ScoreSegment, SharedScores
from tpo_mp.shm.shares import SharedShares, ShareSegment
from tpo_mp.types import EVERYBODY, AnswerTier, Call, Reply, Stream, Terminal, Usage
from tpo_mp.worker.build import Pipeline, build
from tpo_mp.worker.tiers import given_back, with_tier

Prompt: TypeAlias = str | bytes | Sequence[Mapping[str, Any]]
"""One user message, a list of chat messages, or a whole chat body as JSON."""

HIGH_WATER_BYTES = 65536
_OWN = "local"
_FILES = (".toml", ".yaml", ".yml", ".json")


class Infers(Protocol):
    """All a backend of your own needs: answer a call with a ``Reply``, or just with its text."""

    def infer(self, call: Call, /) -> Awaitable[Reply | str]: ...


def spawn_pipeline(
    backend: str | Path | Mapping[str, Any] | Infers = "echo",
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    base_url: str | None = None,
) -> LocalPipeline:
    """Make a pipeline; use it with ``async with``.

    ``backend`` is a backend's kind (``"echo"``, ``"openai"``), any object with ``infer(call)``, or,
    with nothing else to say, a config: a file's path or its tables.  ``config`` brings stages and
    routes for a backend given here.  ``model`` and ``base_url`` are those of ``tpo-mp serve``.

    Raises ``ConfigError``, whose message has one line per problem.
    """
    if isinstance(backend, (Path, Mapping)) or (
        isinstance(backend, str) and backend.endswith(_FILES)
    ):
        return LocalPipeline(_load(backend, {"model": model, "base_url": base_url}))
    if isinstance(backend, str):
        chosen = {"backend": backend, "model": model, "base_url": base_url}
        return LocalPipeline(_load(config, chosen))
    if not callable(getattr(backend, "infer", None)):
        raise ConfigError("a backend is a kind, a config, or an object with infer(call)")
    # In the config an echo entry holds the place of the caller's object.
    place = {"backends": [{"name": _OWN, "kind": "echo", "models": [model or "*"]}]}
    return LocalPipeline(_load(config, {}, place), {_OWN: _Own(backend)})


def _load(
    config: str | Path | Mapping[str, Any] | None,
    flags: dict[str, Any],
    place: Mapping[str, Any] | None = None,
) -> Config:
    """Check a config; ``place`` is laid over its tables."""
    base = None
    tables: Tree
    if isinstance(config, (str, Path)):
        base = Path(config).parent
        tables = read_file(Path(config))
    else:
        tables = msgspec.to_builtins(config or {})
    # Nothing is bound here, so the rule about open ports does not matter.
    flags = flags | {"insecure": True}
    return load.build(tables | dict(place or {}), flags, os.environ, base)


class LocalPipeline:
    """The chain of one shard, without the shard; belongs to the event loop that enters it."""

    def __init__(self, config: Config, given: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._given = given or {}
        self._ids = CallIds(0, 1)
        self._wheel = Wheel()
        self._ticking: asyncio.Task[None] | None = None
        self._arena: MetricsArena
        self._rows: RowTable
        self._quotas: QuotaSegment
        self._live: LiveSegment
        self._journal: JournalSegment
        self._shares: ShareSegment
        self._scores: ScoreSegment
        self._cache: CacheSegment
        self._env: Env
        self._pipeline: Pipeline
        self._serve: Callable[[Call], Awaitable[Reply]] = _not_entered
        self._model = "default"

    async def __aenter__(self) -> Self:
        self._arena = MetricsArena.create(1)
        self._rows = RowTable.create(LEDGER_ROWS)
        self._quotas = QuotaSegment.make(1)
        self._live = LiveSegment.create()
        self._journal = JournalSegment.create()
        self._shares = ShareSegment.create(1)
        self._scores = ScoreSegment.create(1)
        self._cache = CacheSegment.create(1, self._config.server.cache_bytes)
        metrics = self._arena.block(0, 1)
        capacities = msgspec.structs.asdict(self._config.pipeline.edges)
        rooms = make_edges(capacities, metrics, lambda _n: None, lambda: 0)
        env = Env(
            clock=monotonic,
            random=Random(),  # noqa: S311 - spreads load, guards nothing
            metrics=metrics,
            log=structlog.get_logger("tpo_mp"),
            store=_NoStore(),
            timers=self._wheel,
            rooms=rooms,
            ledger=SharedLedger(self._rows, metrics),
            quotas=SharedQuotas(
                self._quotas,
                self._rows,
                seat=0,
                epoch_of=lambda _seat: 1,
                sharers=1,
                refused=metrics.counter(*QUOTAS_REFUSED),
            ),
            live=LiveText(self._live, self._rows),
            journal=SharedJournal(
                self._journal,
                self._rows,
                metrics.counter("tpo_journal_dropped_total", "Journal entries left out."),
            ),
            shares=SharedShares(
                self._shares, self._rows, seat=0, epoch=1, epoch_of=lambda _seat: 1
            ),
            scores=SharedScores(self._scores, self._rows, 0, metrics.counter(*SCORES_REFUSED)),
            cache=SharedCache(self._cache, self._rows, seat=0, clock=monotonic),
        )
        for room in rooms.values():
            room.open()
        self._env = env = with_tier(env, self._config)
        self._pipeline = build(self._config, env, 0, given=self._given)
        self._model = self._pipeline.models.first() or self._model
        self._serve = self._pipeline.chain.admit(self._pipeline.chain.serve)
        self._ticking = asyncio.create_task(self._tick(), name="tpo: timers")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of upstream connections; calls still open in other tasks finish on theirs."""
        self._serve = _closed
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
        self._pipeline.close()
        if self._env.tier is not None:
            given_back(self._env)
            from tpo_mp.store.redis_link import let_go

            await let_go()
        self._quotas.close()
        self._live.close()
        self._journal.close()
        self._shares.close()
        self._scores.close()
        self._cache.close()
        self._rows.close()
        self._arena.close()

    @property
    def tier(self) -> AnswerTier | None:
        """The Redis in which answers are shared, if the config names one."""
        return self._env.tier

    async def infer(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        session: str | None = None,
        **fields: Any,
    ) -> Completion:
        """Answer one prompt; ``fields`` are further fields of the chat body (``temperature`` …)."""
        reply, call = await self._run(self._body(prompt, model, fields), session, stream=False)
        return Completion(call, reply)

    async def chat(self, body: Mapping[str, Any], *, session: str | None = None) -> dict[str, Any]:
        """Answer a chat completion body with a chat completion."""
        reply, _ = await self._run(orjson.dumps(body), session, stream=False)
        answer: dict[str, Any] = orjson.loads(reply.body or b"")
        return answer

    async def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        session: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the answer's text as it comes; leaving the loop early cancels the rest."""
        body = self._body(prompt, model, fields | {"stream": True})
        reply, call = await self._run(body, session, stream=True)
        if reply.stream is None:
            yield Completion(call, reply).text
            return
        arriving = _Arriving(reply.stream)
        try:
            reply.stream.attach(arriving)
            async for data in arriving:
                piece = _text(data)
                if piece:
                    yield piece
        finally:
            reply.stream.cancel()

    async def models(self) -> list[str]:
        """Every model a call may name."""
        return await self._pipeline.models.names()

    def _body(self, prompt: Prompt, model: str | None, fields: Mapping[str, Any]) -> bytes:
        if isinstance(prompt, bytes):
            more = {**fields, "model": model} if model else fields
            return orjson.dumps({**orjson.loads(prompt), **more}) if more else prompt
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return orjson.dumps({"model": model or self._model, "messages": said, **fields})

    async def _run(self, body: bytes, session: str | None, *, stream: bool) -> tuple[Reply, Call]:
        asked = dialect.decode_request(body)
        if bool(asked.stream) is not stream:
            raise InvalidRequest("streams are answered by stream() alone", param="stream")
        call = Call(
            id=self._ids.new(), model=asked.model, body=body, stream=stream, started_at=monotonic()
        )
        call.session = call.affinity = session
        call.tier = EVERYBODY.tier
        call.shard = 0
        await asyncio.sleep(0)  # a backend that never waits must not starve the other callers
        try:
            reply = await self._serve(call)
            if reply.stream is not None and not stream:
                reply.stream.cancel()
                raise BackendFailure("the backend streamed what nobody asked to be streamed")
        except BaseException as e:
            error = as_tpo(e)
            tell_ended(call, ending(terminal_of(error), None, error, call.attempts))
            raise
        if call.endings is not None:
            when_over(reply, partial(_ended, call, reply))
        return reply, call

    async def _tick(self) -> None:
        while True:
            self._wheel.tick(monotonic())
            await asyncio.sleep(GRAIN_S)


def _ended(call: Call, reply: Reply, error: TpoError | None) -> None:
    terminal = Terminal.DONE if error is None else terminal_of(error)
    tell_ended(call, ending(terminal, reply.usage, error, call.attempts))


class Completion:
    """One answer; ``body`` is the chat completion as the backend sent it."""

    __slots__ = ("_seen", "backend", "body", "call_id", "status", "usage")

    def __init__(self, call: Call, reply: Reply) -> None:
        self.call_id = call.id
        self.status = reply.status
        self.body = reply.body or b""
        self.backend = call.backend
        self.usage: Usage | None = reply.usage
        self._seen: dialect.ChatReply | None = None

    @property
    def text(self) -> str:
        """The first choice's text; raises ``BackendFailure`` when the body is no completion."""
        return self._decoded().text()

    @property
    def model(self) -> str:
        """The model that answered, by its own account."""
        return self._decoded().model

    @property
    def finish_reason(self) -> str:
        """Why the text ends where it does."""
        return self._decoded().finish()

    def _decoded(self) -> dialect.ChatReply:
        if self._seen is None:
            try:
                self._seen = dialect.decode_reply(self.body)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                said = "the backend sent no chat completion"
                raise BackendFailure(said, reason="bad_upstream_body") from e
        return self._seen


class _Arriving:
    """The sink of a stream: its events, for one reader that may be slower."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events: deque[bytes] = deque()
        self._carry = b""
        self._held = 0
        self._paused = False
        self._ended = False
        self._error: TpoError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def data(self, chunk: bytes) -> None:
        whole, end, rest = (self._carry + chunk).replace(b"\r\n", b"\n").rpartition(b"\n\n")
        self._carry = rest
        for event in dialect.event_data(whole + end):
            self._events.append(event)
            self._held += len(event)
        if self._held > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._stream.pause()
        self._wake()

    def end(self, error: TpoError | None) -> None:
        self._ended = True
        self._error = error
        self._events.extend(dialect.event_data(self._carry))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._events.popleft()
        self._held -= len(event)
        if self._paused and self._held < HIGH_WATER_BYTES // 2:
            self._paused = False
            self._stream.resume()
        return event


class _Event(dialect.ChatReply):
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


def _text(data: bytes) -> str:
    """The text of one event; raises when it tells of an error."""
    if data == b"[DONE]":
        return ""
    try:
        event = _decode_event(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BackendFailure("the backend sent a broken event", reason="bad_upstream_body") from e
    if event.error is not None:
        raise BackendFailure("the backend broke off with an error", reason="upstream_error")
    return event.text()


class _Own:
    """A caller's object behind the Backend door."""

    name = _OWN

    def __init__(self, inner: Infers) -> None:
        self._inner = inner

    async def infer(self, call: Call) -> Reply:
        call.upstream_at = monotonic()
        said = await self._inner.infer(call)
        call.first_byte_at = monotonic()
        if not isinstance(said, str):
            return said
        reply_id = f"chatcmpl-{call.id}"
        body = dialect.completion(reply_id, int(time()), call.model, said, Usage())
        return Reply(200, body, backend=_OWN)

    async def list_models(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        """It is the caller's."""


class _NoStore:
    """No control process, no store: every feature does what it does without one."""

    async def get(
        self,
        table: str,  # noqa: ARG002 - the Store protocol
        key: str,  # noqa: ARG002
        wait_s: float = 0.05,  # noqa: ARG002
    ) -> bytes | None:
        return None

    async def put(
        self,
        table: str,  # noqa: ARG002
        key: str,  # noqa: ARG002
        value: bytes,  # noqa: ARG002
        ttl_s: float,  # noqa: ARG002
        wait_s: float = 0.05,  # noqa: ARG002
    ) -> bool:
        return False

    async def post(self, *_: object, **__: object) -> None:
        return None


def _not_entered(_call: Call) -> Awaitable[Reply]:
    raise Draining("enter the pipeline first: async with spawn_pipeline(…) as pipeline")


def _closed(_call: Call) -> Awaitable[Reply]:
    raise Draining("this pipeline is closed")
