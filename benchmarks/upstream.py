"""A fast OpenAI-shaped upstream: one process, uvloop and httptools, every reply prebuilt.

It costs little beside the gateway in front of it, counts what reaches it, and changes behaviour
while it runs.  A body with ``"stream":true`` is answered with ``chunks`` server-sent events,
written ``BURST`` per turn of the loop as separate writes; everything else with one JSON reply.

``GET /__stats`` answers the counters.  ``POST /__set`` takes any of ``fail`` (the next N requests
get ``status``), ``latency_ms``, ``hold`` (streams stop after their first event and stay open).

Known weakness: no request limits of any kind; it is for loopback and for trusted load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import httptools
import uvloop

BURST = 8
TEXT = "A bounded queue pushes back: when it is full the producer waits, sheds or fails."
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_MARKS = (b'"stream":true', b'"stream": true')


@dataclass(slots=True)
class Counters:
    """What reached the upstream since it started."""

    requests: int = 0
    streams: int = 0
    streams_done: int = 0
    aborted: int = 0
    open: int = 0
    max_open: int = 0


@dataclass(slots=True)
class Behaviour:
    """What ``/__set`` may change."""

    fail: int = 0
    status: int = 503
    latency_ms: float = 0.0
    hold: bool = False


def plain(body: bytes, status: int = 200) -> bytes:
    """Render a whole JSON reply."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def framed(event: str) -> bytes:
    """Render one server-sent event as one HTTP chunk."""
    data = b"data: " + event.encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def chat_reply() -> bytes:
    """Render the one chat completion."""
    reply = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1,
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 32, "completion_tokens": 16, "total_tokens": 48},
    }
    return plain(json.dumps(reply).encode())


def stream_events(chunks: int) -> list[bytes]:
    """Render the events of one stream; the last one of ``chunks`` carries the finish reason."""
    events = []
    for i in range(chunks):
        last = i == chunks - 1
        delta = {} if last else {"content": f"tok{i} "}
        event = {
            "id": "chatcmpl-mock",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "echo",
            "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if last else None}],
        }
        events.append(framed(json.dumps(event)))
    return events


class Upstream:
    """The prebuilt replies, the counters and the behaviour shared by all connections."""

    def __init__(self, chunks: int, chunk_ms: float, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.chunk_s = chunk_ms / 1000
        self.counters = Counters()
        self.behaviour = Behaviour()
        self.chat = chat_reply()
        self.events = stream_events(chunks)
        self.done = framed("[DONE]") + b"0\r\n\r\n"
        models = [{"id": "echo", "object": "model", "created": 1, "owned_by": "mock"}]
        self.models = plain(json.dumps({"object": "list", "data": models}).encode())
        self.fine = plain(b'{"status":"ok"}')
        self.failure = b'{"error":{"message":"mock failure","type":"server_error","code":null}}'


class Connection(asyncio.Protocol):
    """One connection; requests are answered in order because the peer does not pipeline."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.parser = httptools.HttpRequestParser(self)
        self.alive = True
        self.streaming = False
        self.url = b""
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)
        counters = self.upstream.counters
        counters.open += 1
        counters.max_open = max(counters.max_open, counters.open)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.alive = False
        self.upstream.counters.open -= 1
        if self.streaming:
            self.upstream.counters.aborted += 1

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url.startswith(b"/__"):
            self.command()
        elif not self.body:
            up = self.upstream
            self.transport.write(up.models if b"models" in self.url else up.fine)
        elif delay := self.upstream.behaviour.latency_ms:
            self.upstream.loop.call_later(delay / 1000, self.answer)
        else:
            self.answer()

    def command(self) -> None:
        """Answer the counters or take a change of behaviour."""
        if self.url.startswith(b"/__stats"):
            self.transport.write(plain(json.dumps(asdict(self.upstream.counters)).encode()))
            return
        for name, value in json.loads(self.body).items():
            setattr(self.upstream.behaviour, name, value)
        self.transport.write(self.upstream.fine)

    def answer(self) -> None:
        """Send the reply this body asks for."""
        up = self.upstream
        up.counters.requests += 1
        if up.behaviour.fail > 0:
            up.behaviour.fail -= 1
            self.transport.write(plain(up.failure, up.behaviour.status))
        elif any(mark in self.body for mark in STREAM_MARKS):
            up.counters.streams += 1
            self.streaming = True
            self.transport.write(STREAM_HEAD)
            self.send_events(0)
        else:
            self.transport.write(up.chat)

    def send_events(self, start: int) -> None:
        """Write the next burst and come back for the rest in the next turn of the loop."""
        if not self.alive:
            return
        up = self.upstream
        if up.behaviour.hold:
            self.transport.write(up.events[0])
            return
        end = start + (1 if up.chunk_s else BURST)
        for event in up.events[start:end]:
            self.transport.write(event)
        if end >= len(up.events):
            self.streaming = False
            up.counters.streams_done += 1
            self.transport.write(up.done)
        elif up.chunk_s:
            up.loop.call_later(up.chunk_s, self.send_events, end)
        else:
            up.loop.call_soon(self.send_events, end)


async def serve(host: str, port: int, chunks: int, chunk_ms: float) -> None:
    """Listen, print one ready line and answer until killed."""
    loop = asyncio.get_running_loop()
    upstream = Upstream(chunks, chunk_ms, loop)
    server = await loop.create_server(lambda: Connection(upstream), host, port, backlog=4096)
    print(f"ready http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the upstream in this process."""
    parser = argparse.ArgumentParser(prog="benchmarks.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--chunk-ms", type=float, default=0.0, help="pause between events")
    options = parser.parse_args(argv)
    uvloop.run(serve(options.host, options.port, options.chunks, options.chunk_ms))


if __name__ == "__main__":
    main()
