"""Connections without sockets: transports that record, a loop that waits to be told, a clock.

The HTTP modules read ``monotonic`` by name, so a test moves time by patching it in each of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from tpo_mp.errors import TpoError
from tpo_mp.http import fast, upstream, wheel
from tpo_mp.http.edge import ClientEdge
from tpo_mp.http.endpoints import Endpoint, EndpointTable
from tpo_mp.http.fast import FastConnection
from tpo_mp.http.tally import RequestTally
from tpo_mp.http.wheel import GRAIN_S, Wheel
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.worker.errors_out import render_error


class Clock:
    """Time that stands still until it is moved; ``wheel`` turns with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (fast, upstream, wheel):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.wheel = Wheel()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on in the wheel's own steps, expiring what is due."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now = min(self.now + GRAIN_S, until)
            self.wheel.tick(self.now)


class FakeTransport:
    """A connection's far side: what was written, and whether it was closed.

    While ``stuck`` nothing written leaves, and past ``high_water`` bytes the protocol is paused.
    """

    def __init__(self, soon: Callable[..., object] | None = None, high_water: int = 65536) -> None:
        """``soon`` is the loop's ``call_soon``, which tells of the end; else it is told at once."""
        self.protocol: Any = None
        self._soon = soon
        self.high_water = high_water
        self.written = b""
        self.unsent = 0
        self.stuck = False
        self.closing = False
        self.aborted = False
        self.reading = True
        self.lost = False

    def connect(self, protocol: Any) -> FakeTransport:
        """Hand this connection to its protocol."""
        self.protocol = protocol
        protocol.connection_made(self)
        return self

    def write(self, data: bytes) -> None:
        """Record."""
        assert isinstance(data, bytes | bytearray | memoryview)
        assert not self.closing, "written after close"
        self.written += data
        if self.stuck:
            before, self.unsent = self.unsent, self.unsent + len(data)
            if before <= self.high_water < self.unsent:
                self.protocol.pause_writing()

    def unstick(self) -> None:
        """Let everything written leave."""
        was, self.stuck, self.unsent = self.unsent, False, 0
        if was > self.high_water:
            self.protocol.resume_writing()

    def close(self) -> None:
        """Close once everything has left."""
        self.closing = True
        if not self.stuck:
            self.lose()

    def abort(self) -> None:
        """Close at once."""
        self.closing = self.aborted = True
        self.lose()

    def lose(self, error: Exception | None = None) -> None:
        """The connection ends."""
        if self.lost:
            return
        self.lost = self.closing = True
        if self._soon is None:
            self.protocol.connection_lost(error)
        else:
            self._soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closing

    def pause_reading(self) -> None:
        """Stop the far side."""
        self.reading = False

    def resume_reading(self) -> None:
        """Let the far side go on."""
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Where the far side is."""
        return ("127.0.0.1", 4711) if name == "peername" else default

    def set_protocol(self, protocol: Any) -> None:
        """Change hands."""
        self.protocol = protocol

    def take(self) -> bytes:
        """Answer what was written since the last look."""
        written, self.written = self.written, b""
        return written


class FakeLoop:
    """Callbacks wait for ``run``; tasks are driven to their end at once."""

    def __init__(self) -> None:
        self.soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.readers: dict[int, Callable[[], object]] = {}
        self.dialled: list[Any] = []
        self.dial_error: BaseException | None = None
        self.transports: list[FakeTransport] = []

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Keep a callback."""
        self.soon.append((callback, args))

    def run(self) -> None:
        """Run what waits, and what comes of it."""
        while self.soon:
            callback, args = self.soon.popleft()
            callback(*args)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Keep a reader."""
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """Forget a reader."""
        del self.readers[fd]

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Hand a coroutine to the loop that really runs."""
        return asyncio.get_running_loop().create_task(work)

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int, **options: Any
    ) -> tuple[FakeTransport, Any]:
        """Connect to nowhere, or fail as told."""
        self.dialled.append((host, port, options))
        if self.dial_error is not None:
            raise self.dial_error
        transport = FakeTransport(asyncio.get_running_loop().call_soon)
        self.transports.append(transport)
        protocol = factory()
        transport.connect(protocol)
        return transport, protocol


async def turns(n: int = 5) -> None:
    """Let the running loop take a few turns."""
    for _ in range(n):
        await asyncio.sleep(0)


@dataclass
class EdgeLimits:
    """The limits of ``[server]`` that the edge keeps."""

    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 16384
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    slow_reader_s: float = 30.0


class FakeFront:
    """A client edge over given endpoints, and clients that connect to it."""

    def __init__(self, clock: Clock, endpoints: Iterable[Endpoint], **limits: Any) -> None:
        self.clock = clock
        self.loop = FakeLoop()
        self.crashes: list[BaseException] = []
        self.fast = self.full = self.bad = 0
        self.moved: list[tuple[Any, bytes]] = []
        self.arena = MetricsArena.create(1)
        self.metrics = self.arena.block(0, 1)
        self.edge = ClientEdge(
            loop=self.loop,  # type: ignore[arg-type]
            wheel=clock.wheel,
            table=EndpointTable(endpoints),
            render_error=render_error,
            on_crash=self.crashes.append,
            limits=EdgeLimits(**limits),
            count_fast=lambda: self._count("fast"),
            count_full=lambda: self._count("full"),
            count_bad=lambda: self._count("bad"),
            tally=RequestTally(self.metrics),
        )
        self.edge.to_full_lane = lambda transport, unread: self.moved.append((transport, unread))

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)

    def connect(self) -> Client:
        """Open a connection."""
        return Client(self)


class Client:
    """One client connection to a ``FakeFront``."""

    def __init__(self, front: FakeFront) -> None:
        self._front = front
        self.protocol = FastConnection(front.edge)
        self.transport = FakeTransport(front.loop.call_soon).connect(self.protocol)

    def send(self, *pieces: bytes) -> bytes:
        """Send bytes, one read per piece, and answer what came back."""
        for piece in pieces:
            if not self.transport.closing:
                self.protocol.data_received(piece)
            self._front.loop.run()
        return self.transport.take()

    def leave(self) -> None:
        """Close the client's end."""
        if not self.protocol.eof_received():
            self.transport.close()
        self._front.loop.run()

    @property
    def closed(self) -> bool:
        """Whether the gateway closed it."""
        return self.transport.closing


def statuses(written: bytes) -> list[int]:
    """Split written responses by their own framing; fails on anything left over."""
    found = []
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, head
        lines = head.split(b"\r\n")
        found.append(int(lines[0].split(b" ")[1]))
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        if fields.get(b"transfer-encoding") == b"chunked":
            body, end, written = written.partition(b"0\r\n\r\n")
            assert end, body
        else:
            length = int(fields[b"content-length"])
            assert len(written) >= length
            written = written[length:]
    return found


def error_code(written: bytes) -> bytes:
    """Answer the ``code`` of a written error body."""
    return written.partition(b'"code":')[2].split(b'"')[1]


class HeldStream:
    """A stream the test feeds by hand; notes what it was told."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.told: list[str] = []

    def attach(self, sink: Any) -> None:
        """Keep the sink."""
        self.sink = sink

    def pause(self) -> None:
        """Note it."""
        self.told.append("pause")

    def resume(self) -> None:
        """Note it."""
        self.told.append("resume")

    def cancel(self) -> None:
        """Note it, and be silent from here on."""
        self.told.append("cancel")
        self.sink = None

    def data(self, chunk: bytes) -> None:
        """Send a chunk, if anybody listens."""
        if self.sink is not None:
            self.sink.data(chunk)

    def end(self, error: TpoError | None = None) -> None:
        """End, if anybody listens."""
        if self.sink is not None:
            self.sink.end(error)


class Collected:
    """A sink that keeps what it gets, and fails on anything after the end."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends: list[TpoError | None] = []

    @property
    def text(self) -> bytes:
        """Everything received."""
        return b"".join(self.chunks)

    def data(self, chunk: bytes) -> None:
        """Keep a chunk."""
        assert chunk, "an empty chunk"
        assert not self.ends, "data after the end"
        self.chunks.append(chunk)

    def end(self, error: TpoError | None) -> None:
        """Keep the end."""
        assert not self.ends, "ended twice"
        self.ends.append(error)
