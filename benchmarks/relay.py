"""The bare relay: the least a Python gateway could do, and so the floor ours is measured against.

It frames each request and reply with httptools and copies their bytes; it knows no route, no
model, no limit and no error beyond closing the connection.  One upstream connection belongs to
one request at a time and is kept for the next.

Known weakness: no back-pressure, no deadline, no retry.  It exists to be a yardstick only.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import httptools
import uvloop


class Back(asyncio.Protocol):
    """One kept connection to the upstream."""

    def __init__(self, idle: list[Back]) -> None:
        self.idle = idle
        self.front: Front | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        front = self.front
        if front is None:
            self.transport.close()
            return
        front.transport.write(data)
        self.parser.feed_data(data)
        if self.whole:
            self.whole = False
            self.front = front.back = None
            self.idle.append(self)

    def on_message_complete(self) -> None:
        self.whole = True

    def connection_lost(self, _exc: Exception | None) -> None:
        if self in self.idle:
            self.idle.remove(self)
        if self.front is not None:
            self.front.transport.close()


class Front(asyncio.Protocol):
    """One client connection."""

    def __init__(self, idle: list[Back], connect: Callable[[Front, bytes], None]) -> None:
        self.idle = idle
        self.connect = connect
        self.back: Back | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.pieces: list[bytes] = []
        self.whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.parser.feed_data(data)
        if self.whole:
            self.whole = False
            request = data if len(self.pieces) == 1 else b"".join(self.pieces)
            self.pieces.clear()
            if self.idle:
                self.send(self.idle.pop(), request)
            else:
                self.connect(self, request)

    def on_message_complete(self) -> None:
        self.whole = True

    def send(self, back: Back, request: bytes) -> None:
        self.back = back
        back.front = self
        back.transport.write(request)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.back is not None:
            self.back.front = None
            self.back.transport.close()


async def serve(host: str, port: int, upstream: str) -> None:
    """Listen, print one ready line and relay until killed."""
    loop = asyncio.get_running_loop()
    up_host, _, up_port = upstream.rpartition(":")
    idle: list[Back] = []
    tasks: set[asyncio.Task[None]] = set()

    async def open_back(front: Front, request: bytes) -> None:
        try:
            _, back = await loop.create_connection(lambda: Back(idle), up_host, int(up_port))
        except OSError:
            front.transport.close()
            return
        front.send(back, request)

    def connect(front: Front, request: bytes) -> None:
        task = loop.create_task(open_back(front, request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await loop.create_server(lambda: Front(idle, connect), host, port, backlog=4096)
    print(f"ready http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the relay in this process."""
    parser = argparse.ArgumentParser(prog="benchmarks.relay", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    options = parser.parse_args(argv)
    uvloop.run(serve(options.host, options.port, options.upstream))


if __name__ == "__main__":
    main()
