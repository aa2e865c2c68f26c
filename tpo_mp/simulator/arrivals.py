"""A client that knows when each token is due, and notes when it came.

It runs on the host of the simulator, so both read one clock: a token's lag is its arrival minus the
request's sending minus the wait its key drew, the way there and back included.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, cast

import orjson

from .profiles import ProfileSchedule
from .seeds import key_of

WORD: Final = "word"
TIMEOUT_S: Final = 120.0
BETWEEN_STARTS_S: Final = 0.02
"""Clients begin one after the other: ten that connect at one instant wait for each other, and are a
hundredth of a thousand requests."""


@dataclass(slots=True)
class Arrivals:
    """What a run saw, in milliseconds."""

    lags: array[float] = field(default_factory=lambda: array("d"))
    first: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Asking:
    """So many streams of so many tokens of one model, so many of them at once."""

    host: str
    port: int
    model: str
    timing: ProfileSchedule
    tokens: int
    requests: int
    at_once: int


def schedule(asking: Asking, key: str) -> list[float]:
    """When each token of the call with this key is due, in seconds from its arrival."""
    drawn = key_of(0, {"key": key, "model": asking.model})
    timing = asking.timing
    steps = timing.steps(timing.drawing(drawn), drawn, 0.0, asking.tokens, 1.0)
    return [at for at, tokens in steps for _ in range(tokens)]


async def measure(asking: Asking, progress: Callable[[int], None] = lambda _: None) -> Arrivals:
    """Ask, and compare each token's arrival with its schedule."""
    seen = Arrivals()
    numbers = iter(range(asking.requests))

    async def ask_on(client: int) -> None:
        await asyncio.sleep(client * BETWEEN_STARTS_S)
        for number in numbers:
            key = f"selfcheck-{number}"
            due = schedule(asking, key)
            try:
                async with asyncio.timeout(TIMEOUT_S + due[-1]):
                    sent_at, came = await _stream(asking, key)
            except (OSError, TimeoutError):
                came = []
            progress(1)
            if len(came) != len(due):
                seen.failed += 1
                continue
            seen.first.append((came[0] - sent_at) * 1e3)
            seen.gaps.extend((b - a) * 1e3 for a, b in pairwise(came))
            seen.lags.extend(
                (at - sent_at - wait) * 1e3 for at, wait in zip(came, due, strict=True)
            )

    async with asyncio.TaskGroup() as group:
        for client in range(asking.at_once):
            group.create_task(ask_on(client))
    return seen


class _Reader(asyncio.Protocol):
    """One stream on a connection of its own: the arrival of each token."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.sent_at = 0.0
        self.came: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.sent_at = time.monotonic()
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        events = (self._tail + data).split(b"\n\n")
        self._tail = events.pop()
        for event in events:
            if b'"content":"' in event and b'"content":""' not in event:
                self.came.append(now)
            elif b"[DONE]" in event and not self.done.done():
                self.done.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _stream(asking: Asking, key: str) -> tuple[float, list[float]]:
    body = orjson.dumps({
        "model": asking.model, "stream": True, "max_tokens": asking.tokens,
        "messages": [{"role": "user", "content": WORD}],
    })  # fmt: skip
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: %b\r\nx-sim-key: %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    ) % (asking.host.encode(), key.encode(), len(body), body)
    loop = asyncio.get_running_loop()
    transport, reader = await loop.create_connection(
        lambda: _Reader(request), asking.host, asking.port
    )
    try:
        await reader.done
    finally:
        transport.close()
    return reader.sent_at, reader.came
