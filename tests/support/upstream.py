"""An OpenAI-like upstream that misbehaves on request; a thread with a loop of its own.

It speaks raw bytes, because most of its faults are replies no HTTP library would write.
What it does next is a ``Script``: set for all requests by ``play``, for the next few by ``queue``,
or for one request by an ``upstream`` object in the body's ``metadata``.
The same is offered over HTTP for other processes: ``GET /control`` answers the counters,
``POST /control`` takes a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from heapq import heapreplace
from typing import Any, Literal, Self

from .wait import until, wait_for

Mode = Literal[
    "answer",  # a proper reply; SSE when the body says stream
    "status",  # an OpenAI error body with Script.status
    "html",  # 200 with a web page
    "malformed_json",  # 200, JSON that ends in the middle
    "malformed_sse",  # events that are not JSON
    "no_done",  # a stream that ends properly, but without its terminal event
    "stream_error",  # an in-band error event after cut_after chunks
    "cut",  # the connection ends after cut_after chunks, or in the middle of a unary body
    "short",  # fewer bytes than Content-Length, then a clean close
    "drip",  # one byte of the reply at a time
    "hang",  # takes the request, answers nothing
    "hang_body",  # head and cut_after chunks, then silence
    "endless",  # chunks for ever
    "many_headers",  # a proper reply under ten thousand header lines
    "reset",  # a TCP reset instead of a reply
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the upstream does with a request."""

    mode: Mode = "answer"
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    numbered: bool = False
    """The text tells which request it answers, and everything that was said in it."""
    chunks: int = 5
    cut_after: int = 2
    first_s: float = 0.0
    until: threading.Event | None = None
    """Nothing is answered before this is set."""
    rest_until: threading.Event | None = None
    """Of a stream no second event is sent before this is set."""
    at_once: int = 0
    """So many requests work at a time, and the others wait before their ``first_s``; 0: all."""
    refuse_above: int = 0
    """So many requests work at a time, and more are answered ``status`` at once; 0: none."""
    delay_s: float = 0.0
    pad_bytes: int = 0
    keep_alive: bool = True
    reply: Any = None
    """The JSON body of a whole reply or of a ``status``, instead of its own."""
    media_type: str = "text/event-stream"
    """Of a stream."""
    events: tuple[bytes, ...] = ()
    """The events of a stream in any dialect, instead of its own; ``cut`` and ``no_done`` count."""


@dataclass(slots=True)
class Counters:
    """What happened so far; ``aborted`` counts requests whose client left too early.

    ``sent_bytes`` stands still while the client reads nothing and the kernel's buffers are full.
    """

    connections: int = 0
    requests: int = 0
    completed: int = 0
    aborted: int = 0
    open: int = 0
    max_open: int = 0
    sent_bytes: int = 0
    working: int = 0
    """Requests in their ``first_s``: over before their client can know it, unlike ``open``."""
    max_working: int = 0
    free_at: list[float] = field(default_factory=list)
    """When each of ``at_once`` will have nothing more to do."""


_counters: ContextVar[Counters] = ContextVar("counters")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived, ``at`` on the monotonic clock; header names in lower case.

    ``port`` is that of the connection's other end.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = 0.0
    port: int = 0

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a GET; a string is plain text, anything else JSON."""

    body: Any
    status: int = 200
    after_s: float = 0.0


class Upstream:
    """The server; a context manager.  Its methods may be called from any thread."""

    def __init__(
        self,
        models: tuple[str, ...] = ("up-1", "up-2"),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.models = models
        self._tls = tls
        self.counters = Counters()
        self.pages: dict[str, Page] = {}
        """What is answered to a GET of a path, instead of anything else; it is not counted."""
        self.pages_asked: list[Seen] = []
        self.seen: deque[Seen] = deque(maxlen=10_000)
        self.aborted_at: deque[float] = deque(maxlen=10_000)
        """When each request was aborted, on the machine's monotonic clock."""
        self.port = port
        self._script = Script()
        self._queued: deque[Script] = deque()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What a backend's ``base_url`` is set to."""
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *exc: object) -> None:
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def play(self, mode: Mode = "answer", **changes: Any) -> None:
        """Do this with every request from now on; ``play()`` is good behaviour again."""
        self._script = Script(mode=mode, **changes)

    def queue(self, mode: Mode, times: int = 1, **changes: Any) -> None:
        """Do this with the next ``times`` requests, before anything else."""
        self._queued.extend([Script(mode=mode, **changes)] * times)

    def forget(self) -> None:
        """Behave well again, and forget what was seen and what was to come."""
        self.play()
        for kept in (self._queued, self.seen, self.aborted_at):
            kept.clear()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """For one test: nothing of others is there before it, and nothing upstream after it."""
        self.forget()
        self.counters.max_working = 0
        yield
        self.forget()
        wait_for(lambda: self.counters.open == 0, 10, "nothing left upstream")

    def refuse(self) -> None:
        """Close the listener and every connection: connecting is refused until ``accept``."""
        self._wait(self._stop())

    def accept(self) -> None:
        """Listen, on the same port as before."""
        self._wait(self._listen())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, backlog=1024, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.counters.connections += 1
        _counters.set(self.counters)
        port = writer.get_extra_info("peername")[1]
        try:
            while (request := await _read_request(reader, port)) and await self._answer(
                request, reader, writer
            ):
                pass
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(
        self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; say whether the connection lives on."""
        if request.path == "/control":
            return await self._control(request, writer)
        page = self.pages.get(request.path.partition("?")[0]) if request.method == "GET" else None
        if page is not None:
            self.pages_asked.append(request)
            await asyncio.sleep(page.after_s)
            if isinstance(page.body, str):
                body = page.body.encode()
                head = _head(page.status, "text/plain", f"Content-Length: {len(body)}")
                await _send(writer, head + body)
            else:
                await _send(writer, _unary(page.body, page.status))
            return True
        if request.path.startswith("/v1/models"):
            listed = [
                {"id": m, "object": "model", "created": 1, "owned_by": "upstream"}
                for m in self.models
            ]
            await _send(writer, _unary({"object": "list", "data": listed}))
            return True
        self.seen.append(request)
        counters = self.counters
        counters.requests += 1
        counters.open += 1
        counters.max_open = max(counters.max_open, counters.open)
        script, body = self._choose(request)
        reply = asyncio.ensure_future(_reply(script, body, writer, counters.requests))
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({reply, left}, return_when=asyncio.FIRST_COMPLETED)
            done = reply.done() and reply.exception() is None
            if not done:
                self.aborted_at.append(time.monotonic())
            counters.completed += done
            counters.aborted += not done
            return done and script.keep_alive and not writer.transport.is_closing()
        finally:
            counters.open -= 1
            for task in (reply, left):
                task.cancel()
            await asyncio.gather(reply, left, return_exceptions=True)

    def _choose(self, request: Seen) -> tuple[Script, dict[str, Any]]:
        try:
            body = request.json()
        except ValueError:
            body = {}
        script = self._queued.popleft() if self._queued else self._script
        metadata = body.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("upstream"), dict):
            script = replace(script, **metadata["upstream"])
        return script, body

    async def _control(self, request: Seen, writer: asyncio.StreamWriter) -> bool:
        if request.method == "POST":
            self._script = Script(**request.json())
        await _send(writer, _unary(asdict(self.counters)))
        return True


async def _read_request(reader: asyncio.StreamReader, port: int) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method, path, headers, body, time.monotonic(), port)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset rather than an orderly end."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    _counters.get().sent_bytes += len(data)


def _head(status: int, kind: str, framing: str, more: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", framing]
    lines += [f"{name}: {value}" for name, value in (more or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _unary(value: Any, status: int = 200, more: dict[str, str] | None = None) -> bytes:
    body = json.dumps(value).encode()
    return _head(status, "application/json", f"Content-Length: {len(body)}", more) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(value: Any) -> bytes:
    return _chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _reply_text(script: Script, body: dict[str, Any], number: int) -> str:
    text = script.text
    if script.numbered:
        said = " | ".join(str(m.get("content")) for m in body.get("messages", ()))
        text = f"#{number}# {said}"
    if not text:
        messages = body.get("messages") or [{"content": ""}]
        text = f"answer to {messages[-1].get('content')}"
    return text + "x" * script.pad_bytes


def _completion(script: Script, body: dict[str, Any], number: int) -> dict[str, Any]:
    text = _reply_text(script, body, number)
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-up-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body.get("model", ""),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


def _stream_chunk(body: dict[str, Any], number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-up-{number}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": body.get("model", ""),
    } | more


def _choice(content: str | None, finish: str | None) -> dict[str, Any]:
    delta = {"content": content} if content is not None else {}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _wait_s(script: Script, free_at: list[float]) -> float:
    """How long until one of ``at_once`` is free, who then works for ``first_s``."""
    if not script.at_once:
        return 0.0
    now = time.monotonic()
    if len(free_at) != script.at_once:
        free_at[:] = [now] * script.at_once
    begins = max(free_at[0], now)
    heapreplace(free_at, begins + script.first_s)
    return begins - now


async def _reply(
    script: Script, body: dict[str, Any], writer: asyncio.StreamWriter, number: int
) -> None:
    counters = _counters.get()
    if 0 < script.refuse_above <= counters.working:
        error = {"message": "too many requests", "type": "overloaded", "code": None}
        await _send(writer, _unary({"error": error}, script.status, script.headers))
        return
    counters.working += 1
    counters.max_working = max(counters.max_working, counters.working)
    try:
        if script.until is not None:
            await until(script.until.is_set, 120, "what this answer waits for", every_s=0.01)
        await asyncio.sleep(script.first_s + _wait_s(script, counters.free_at))
    finally:
        counters.working -= 1
    mode = script.mode
    if mode == "hang":
        await asyncio.Event().wait()
    elif mode == "reset":
        _reset(writer)
    elif mode == "status":
        error = {
            "message": "upstream says no",
            "type": "server_error",
            "param": None,
            "code": "upstream",
        }
        shown = script.reply or {"error": error}
        await _send(writer, _unary(shown, script.status, script.headers))
    elif mode == "html":
        page = b"<html><body>It works!</body></html>"
        await _send(writer, _head(200, "text/html", f"Content-Length: {len(page)}") + page)
    elif body.get("stream") is True:
        await _reply_stream(script, body, writer, number)
    else:
        await _reply_unary(script, body, writer, number)


async def _reply_unary(
    script: Script, body: dict[str, Any], writer: asyncio.StreamWriter, number: int
) -> None:
    mode = script.mode
    value = script.reply or _completion(script, body, number)
    more = script.headers
    if mode == "many_headers":
        more = more | {f"X-Filler-{i}": "y" * 20 for i in range(10_000)}
    data = _unary(value, more=more)
    if mode == "malformed_json":
        half = json.dumps(value).encode()[:-20]
        data = _head(200, "application/json", f"Content-Length: {len(half)}") + half
    if mode in ("cut", "short", "hang_body"):
        data = data[:-20]
    if mode == "endless":
        await _send(writer, _head(200, "application/json", "Transfer-Encoding: chunked"))
        while True:
            await _send(writer, _chunk(b" " * 65_536))
    await _send_paced(script, data, writer)
    if mode == "hang_body":
        await asyncio.Event().wait()
    if mode == "cut":
        writer.transport.abort()
    if mode == "short":
        writer.close()


async def _reply_stream(
    script: Script, body: dict[str, Any], writer: asyncio.StreamWriter, number: int
) -> None:
    more = script.headers
    if script.mode == "many_headers":
        more = more | {f"X-Filler-{i}": "y" * 20 for i in range(10_000)}
    head = _head(200, script.media_type, "Transfer-Encoding: chunked", more)
    await _send_paced(script, head, writer)
    sent = 0
    async for event in _events(script, body, number):
        if script.mode == "cut" and sent == script.cut_after:
            writer.transport.abort()
            return
        if script.mode == "hang_body" and sent == script.cut_after:
            await asyncio.Event().wait()
        await _send_paced(script, event, writer)
        sent += 1
        if script.rest_until is not None:
            await until(script.rest_until.is_set, 120, "what the rest waits for", every_s=0.01)


async def _events(script: Script, body: dict[str, Any], number: int) -> AsyncIterator[bytes]:
    if script.events:
        whole = script.mode != "no_done"
        for event in script.events if whole else script.events[:-1]:
            yield _chunk(event)
        yield _chunk(b"")
        return
    text = _reply_text(script, body, number)
    size = max(1, -(-len(text) // script.chunks))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    sent = 0
    while sent < len(pieces) or script.mode == "endless":
        if script.mode == "stream_error" and sent == script.cut_after:
            yield _event({"error": {"message": "upstream broke", "type": "server_error"}}) + _chunk(
                b""
            )
            return
        if script.mode == "malformed_sse":
            yield _chunk(b'data: {"choices": [{"delta"\n\n')
        else:
            yield _event(_stream_chunk(body, number, **_choice(pieces[sent % len(pieces)], None)))
        sent += 1
        await asyncio.sleep(script.delay_s)
    if script.mode == "no_done":
        yield _chunk(b"")
        return
    yield _event(_stream_chunk(body, number, **_choice(None, "stop")))
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": len(pieces),
            "total_tokens": 7 + len(pieces),
        }
        yield _event(_stream_chunk(body, number, choices=[], usage=usage))
    yield _chunk(b"data: [DONE]\n\n") + _chunk(b"")


def stream_body(body: dict[str, Any], number: int, **script: Any) -> bytes:
    """The SSE body of a proper reply, as the ``number``-th request gets it."""

    async def collect() -> bytes:
        script["delay_s"] = 0.0
        chunks = [event async for event in _events(Script(**script), body, number)]
        return b"".join(_unchunk(b"".join(chunks)))

    return asyncio.run(collect())


def _unchunk(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while size := int(data[at : (cut := data.index(b"\r\n", at))], 16):
        parts.append(data[cut + 2 : cut + 2 + size])
        at = cut + 4 + size
    return parts


async def _send_paced(script: Script, data: bytes, writer: asyncio.StreamWriter) -> None:
    if script.mode != "drip":
        await _send(writer, data)
        return
    for i in range(len(data)):
        await _send(writer, data[i : i + 1])
        await asyncio.sleep(script.delay_s)
