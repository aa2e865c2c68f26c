"""What the engine answers: chats and completions in OpenAI's dialect, messages in Anthropic's.

``app`` is its HTTP; ``serve`` is for requests that came another way.

Invariants: every request is answered in its dialect, errors too, with the field named where there
is one; a client that leaves takes its sequences out of the batch; nothing is sent before the first
token, so a failure until then has a status of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from tpo_mp.dialects import anthropic_messages, openai_chat, openai_completions
from tpo_mp.dialects.body import check_json_size
from tpo_mp.dialects.canonical import (
    ModelReply,
    ModelRequest,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyUsage,
    StreamEvent,
    TokenUsage,
)
from tpo_mp.dialects.codec import Codec
from tpo_mp.errors import BackendFailure, Busy, NotFound, TooLarge, TpoError

from .gauges import Gauges
from .generation import Generation
from .job import DrawnToken, Job
from .loading import Loaded
from .prompting import Order, Prompting
from .speech import SpokenAnswer, Voice

MOST_BODY_BYTES: Final = 32 << 20
_CODECS: Final[tuple[Codec, ...]] = (openai_chat, openai_completions, anthropic_messages)
_POSTS: Final = {f"POST /v1/{codec.API.removeprefix('v1/')}": codec for codec in _CODECS}
_SSE: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


class Out(Protocol):
    """Where an answer goes: all of it at once, or a stream of events that is begun and ended."""

    begun: bool

    async def whole(self, status: int, body: bytes, retry_after_s: float | None) -> None:
        """A JSON body."""

    async def begin(self) -> None:
        """Events will follow."""

    async def write(self, data: bytes) -> None:
        """Some of them; waits while the reader is behind."""

    async def end(self) -> None:
        """That was all."""


class Service:
    """The routes before one generation."""

    def __init__(self, generation: Generation, name: str, context: int | None = None) -> None:
        """``name`` is the model's for clients, ``context`` a shorter one than its own."""
        self._generation = generation
        self._name = name
        self._context = context
        self._since = int(time.time())
        self._loaded: Loaded | None = None
        self._prompting: Prompting | None = None
        self._voice: Voice | None = None
        self.gauges = Gauges(generation)

    def opened(self, loaded: Loaded) -> None:
        """The model is there: requests are taken from now on."""
        self._context = min(self._context or loaded.context, loaded.context)
        self._voice = Voice(loaded.tokenizer)
        self._prompting = Prompting(loaded, self._context)
        self._loaded = loaded

    def app(self) -> web.Application:
        """What aiohttp serves."""
        app = web.Application(client_max_size=MOST_BODY_BYTES)
        for target, codec in _POSTS.items():
            app.router.add_post(target.removeprefix("POST "), self._route(codec))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, _app: web.Application) -> None:
        if self._prompting is not None:
            self._prompting.close()

    async def _health(self, _request: web.Request) -> web.Response:
        generation, loaded = self._generation, self._loaded
        state = "ok" if loaded else "loading"
        if generation.broken.done():
            state = "broken"
        said = {
            "status": state, "model": self._name, "running": generation.running,
            "waiting": generation.waiting,
        }  # fmt: skip
        return web.json_response(said, status=200 if state == "ok" else 503)

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response(self._list())

    def _list(self) -> dict[str, Any]:
        model = {
            "id": self._name, "object": "model", "created": self._since, "owned_by": "mlx",
            "max_model_len": self._context,
        }  # fmt: skip
        return {"object": "list", "data": [model] if self._loaded else []}

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.gauges.page(), content_type="text/plain", charset="utf-8")

    async def respond(self, codec: Codec, body: bytes | None, out: Out) -> None:
        """Answer one request; ``body`` is ``None`` when it is too long."""
        outcome = "cancelled"
        try:
            await self._answer(codec, body, out)
            outcome = "done"
        except TpoError as e:
            outcome = e.reason
            await out.whole(codec.error_status(e), codec.error_body(e), e.retry_after_s)
        finally:
            self.gauges.calls.labels(outcome).inc()

    async def serve(self, target: str, body: bytes | None, out: Out) -> None:
        """Answer what did not come by HTTP; ``target`` is a method and a path."""
        self.gauges.by_rings.inc()
        codec = _POSTS.get(target)
        try:
            if codec is not None:
                await self.respond(codec, body, out)
            elif target == "GET /v1/models":
                await out.whole(200, orjson.dumps(self._list()), None)
            else:
                await _refuse(out, NotFound(f"no {target[:200]} here", status=404))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as e:
            if out.begun:
                raise
            await _refuse(out, _failed(e))

    def _route(self, codec: Codec) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            body: bytes | None = None
            with contextlib.suppress(web.HTTPRequestEntityTooLarge):
                body = await request.read()
            out = HttpOut(request)
            await self.respond(codec, body, out)
            return out.response

        return answer

    async def _answer(self, codec: Codec, body: bytes | None, out: Out) -> None:
        began = time.monotonic()
        if body is None:
            raise TooLarge(f"the body has more than {MOST_BODY_BYTES} bytes")
        check_json_size(body)
        codec.decode_request(body)
        asked = codec.request_to_canonical(body)
        if self._prompting is None or self._voice is None:
            raise Busy("the model is still loading", reason="loading", retry_after_s=1.0)
        if asked.model != self._name:
            raise NotFound(
                f"the model {asked.model[:100]!r} does not exist; here is {self._name!r}",
                reason="model_not_found",
                param="model",
            )
        order = await self._prompting.order(asked)
        answer = _Answer(self._generation, self._voice, order, self.gauges, began)
        try:
            if asked.stream:
                await self._stream(codec, asked, answer, out)
            else:
                await self._whole(codec, asked, answer, out)
        finally:
            answer.leave()

    async def _whole(self, codec: Codec, asked: ModelRequest, answer: _Answer, out: Out) -> None:
        while not answer.done:
            await answer.more()
        reply = ModelReply(
            id=answer.id,
            model=self._name,
            choices=tuple(speech.reply() for speech in answer.speeches),
            usage=answer.usage(),
            created=int(time.time()),
        )
        await out.whole(200, codec.reply_from_canonical(reply, asked), None)

    async def _stream(self, codec: Codec, asked: ModelRequest, answer: _Answer, out: Out) -> None:
        encoder = codec.StreamEncoder(asked)
        events = await answer.more()
        usage = TokenUsage(prompt=answer.prompt, cached=answer.cached)
        start = ReplyStart(answer.id, self._name, int(time.time()), usage)
        events.insert(0, start)
        await out.begin()
        try:
            while True:
                last = answer.all_told  # it may end while a slow reader takes what comes before
                if last:
                    events += (ReplyUsage(answer.usage()), ReplyEnd())
                frames = b"".join([encoder.encode(event) for event in events])
                if frames:
                    await out.write(frames)
                if last:
                    break
                events = await answer.more()
        except TpoError as e:
            await out.write(encoder.encode(ReplyFailed(e)))
        await out.end()


class HttpOut:
    """Answers one HTTP request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response: web.StreamResponse = web.Response(status=500)
        self.begun = False

    async def whole(self, status: int, body: bytes, retry_after_s: float | None) -> None:
        """Have ``response`` be all of it."""
        headers = {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(retry_after_s)))
        self.response = web.Response(
            body=body, status=status, headers=headers, content_type="application/json"
        )

    async def begin(self) -> None:
        """Send the head of a stream."""
        self.begun = True
        self.response = web.StreamResponse(headers=_SSE)
        await self.response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Send a piece of it."""
        await self.response.write(data)

    async def end(self) -> None:
        """Send its end."""
        with contextlib.suppress(ConnectionError):
            await self.response.write_eof()


class _Answer:
    """One request's sequences: what was told of them and not yet sent."""

    def __init__(
        self, generation: Generation, voice: Voice, order: Order, gauges: Gauges, began: float
    ) -> None:
        """Raises ``Shed`` when the engine has too much to do."""
        self.id = uuid.uuid4().hex
        self.prompt = len(order.tokens)
        self.cached = 0
        self._generation = generation
        self._gauges = gauges
        self._began = began
        self._first = 0.0
        self._events: list[StreamEvent] = []
        self._error: TpoError | None = None
        self._told = asyncio.Event()
        thinks = voice.thinks_first(order.tokens[-16:])
        self.speeches = [
            SpokenAnswer(voice, number, stops=order.stops, tools=order.tools, thinks_first=thinks)
            for number in range(order.choices)
        ]
        self._jobs: list[Job] = []
        try:
            for number, speech in enumerate(self.speeches):
                job = _job(order, number)
                job.hear = self._hearer(speech, job)
                self._jobs.append(job)
                generation.ask(job)
        except TpoError:
            self.leave()
            raise
        gauges.prompt.inc(self.prompt)

    @property
    def done(self) -> bool:
        """Whether all choices are complete."""
        return all(speech.done for speech in self.speeches)

    @property
    def all_told(self) -> bool:
        """Whether they are, and ``more`` has told all of it."""
        return self.done and not self._events

    async def more(self) -> list[StreamEvent]:
        """Wait for what is said next; raises what went wrong."""
        while not self._events and not self.done and self._error is None:
            self._told.clear()
            await self._told.wait()
        if self._error is not None and not self._events:
            raise self._error
        events, self._events = self._events, []
        return events

    def usage(self) -> TokenUsage:
        """The tokens of all choices."""
        made = sum(speech.tokens for speech in self.speeches)
        return TokenUsage(prompt=self.prompt, completion=made, cached=self.cached)

    def leave(self) -> None:
        """Nobody wants more; a no-op after the end."""
        for job in self._jobs:
            self._generation.leave(job)

    def _hearer(self, speech: SpokenAnswer, job: Job) -> Callable[[DrawnToken | TpoError], None]:
        def hear(told: DrawnToken | TpoError) -> None:
            if isinstance(told, TpoError):
                self._error = told
            else:
                self._heard(speech, job, told)
            self._told.set()

        return hear

    def _heard(self, speech: SpokenAnswer, job: Job, told: DrawnToken) -> None:
        now = time.monotonic()
        if not self._first:
            self._first = now
            self.cached = job.cached
            self._gauges.cached.inc(job.cached)
            self._gauges.first.observe(now - self._began)
        self._events += speech.hear(told)
        self._gauges.made.inc()
        if speech.done:
            self._generation.leave(job)
            if speech.tokens > 1:
                self._gauges.between.observe((now - self._first) / (speech.tokens - 1))


def _job(order: Order, number: int) -> Job:
    """The sequence of one choice; each draws for itself."""
    sampling = order.sampling
    if sampling.seed is not None:
        sampling = sampling._replace(seed=sampling.seed + number)
    return Job(
        tokens=order.tokens, most=order.most, sampling=sampling, leaning=order.leaning,
        hear=lambda _: None, tops=order.tops, ignore_eos=order.ignore_eos,
    )  # fmt: skip


async def _refuse(out: Out, error: TpoError) -> None:
    body = openai_chat.error_body(error)
    await out.whole(openai_chat.error_status(error), body, error.retry_after_s)


def _failed(e: Exception) -> TpoError:
    return BackendFailure(f"the engine failed: {type(e).__name__}")


@web.middleware
async def no_tracebacks(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A defect, or a path that is none, as OpenAI's error body."""
    out = HttpOut(request)
    try:
        return await handler(request)
    except web.HTTPException as e:
        await _refuse(
            out, NotFound(f"no {request.method} {request.path[:200]} here", status=e.status)
        )
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception as e:  # noqa: BLE001 - the client's dialect has no tracebacks
        await _refuse(out, _failed(e))
    return out.response
