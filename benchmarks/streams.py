"""Many open streams: ask for N of them, take the first byte of each, and hold them.

Prints ``holding N`` once every stream has begun, or the number that did when the time is up or no
more begin, and keeps them open until it is ended.

Known weakness: one loopback address has about 28 000 source ports per destination.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import ClassVar, cast
from urllib.parse import urlsplit

import uvloop

from .payload import DIGITS, Payload

BATCH = 50
QUIET_S = 3.0


class Holder(asyncio.Protocol):
    """One stream; only its beginning is looked at."""

    begun = 0
    held: ClassVar[list[Holder]] = []
    """All of them: a loop forgets a connection that it does not read from."""

    def __init__(self, request: bytes, *, unread: bool = False) -> None:
        self.request = request
        self.first = True
        self.unread = unread
        Holder.held.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.first and data.startswith(b"HTTP/1.1 200"):
            Holder.begun += 1
        if self.first and self.unread:
            self.transport.pause_reading()
        self.first = False


async def hold(
    url: str, payload: Payload, count: int, secs: float, *, unread: bool = False
) -> None:
    """Open the streams in small batches and wait for their first bytes.

    With ``unread`` the kernel keeps what comes after these.
    """
    loop = asyncio.get_running_loop()
    at = urlsplit(url)
    host, port = at.hostname or "", at.port or 80
    before, after = payload.pieces(url)
    deadline = time.monotonic() + secs

    async def begin(number: int) -> None:
        request = b"%b%0*d%b" % (before, DIGITS, number, after)
        with contextlib.suppress(OSError):
            await loop.create_connection(lambda: Holder(request, unread=unread), host, port)

    for start in range(0, count, BATCH):
        await asyncio.gather(*(begin(i) for i in range(start, min(start + BATCH, count))))
        waited_from = time.monotonic()
        while Holder.begun < start and time.monotonic() < min(deadline, waited_from + QUIET_S):
            await asyncio.sleep(0.005)
    seen, quiet_since = Holder.begun, time.monotonic()
    while Holder.begun < count and time.monotonic() < min(deadline, quiet_since + QUIET_S):
        await asyncio.sleep(0.05)
        if Holder.begun > seen:
            seen, quiet_since = Holder.begun, time.monotonic()
    print(f"holding {Holder.begun}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Hold streams until ended."""
    parser = argparse.ArgumentParser(prog="benchmarks.streams", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--tag", default="hold")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--secs", type=float, default=60.0, help="longest time to open them in")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer to ask for")
    parser.add_argument("--unread", action="store_true", help="read the first bytes only")
    options = parser.parse_args()
    payload = Payload(options.tag, stream=True, extra={"max_tokens": options.tokens})
    uvloop.run(hold(options.url, payload, options.count, options.secs, unread=options.unread))


if __name__ == "__main__":
    main()
