"""Load that comes when it comes: requests at instants of a plan, whether earlier ones ended or not.

A latency counts from the instant of the plan, so a server that stalls delays nothing of the load
and hides nothing of its wait.  One connection has one request at a time; there are as many as are
needed.

Known weakness: the client is one event loop; what it lags behind its plan is counted as the
server's time, and ``lag_ms`` says how much that was.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast
from urllib.parse import urlsplit

Plan = Sequence[tuple[float, str]]
"""Seconds from the start, and the kind of request, in order."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_QUEUED = re.compile(rb"\r\nx-tpo-queue-ms: *([\d.]+)", re.IGNORECASE)
_PAUSE = re.compile(rb"\r\nretry-after-ms: *(\d+)", re.IGNORECASE)
BROKEN = 0
"""The status of a request that got no answer."""


@dataclass(slots=True)
class Shot:
    """One request: when it was due, how it was answered, and after how long."""

    due_s: float
    kind: str
    status: int = BROKEN
    took_ms: float = 0.0
    lag_ms: float = 0.0
    queued_ms: float = 0.0
    pause_ms: float = 0.0
    """What a refusal said to wait; 0: nothing."""

    @property
    def good(self) -> bool:
        """It was answered."""
        return self.status == 200

    @property
    def refused(self) -> bool:
        """It was told to come later."""
        return self.status in (429, 503, 529)


def arrivals(
    rate: float,
    secs: float,
    rng: Random,
    mix: Mapping[str, float] | None = None,
    start_s: float = 0,
) -> list[tuple[float, str]]:
    """A plan of so many requests a second on average, at random instants; ``mix`` are shares."""
    kinds, weights = zip(*(mix or {"plain": 1.0}).items(), strict=True)
    plan: list[tuple[float, str]] = []
    at = start_s
    while True:
        at += rng.expovariate(rate)
        if at >= start_s + secs:
            return plan
        plan.append((at, rng.choices(kinds, weights)[0]))


class OpenLoop:
    """Sends plans to one server; ``requests`` makes the next request of each kind."""

    def __init__(self, url: str, requests: Mapping[str, Callable[[], bytes]]) -> None:
        at = urlsplit(url)
        self._host, self._port = at.hostname or "", at.port or 80
        self._requests = requests
        self.idle: list[_Line] = []
        self._open = 0
        self._waits: set[asyncio.Task[None]] = set()

    async def fire(self, plan: Plan, patience_s: float = 20.0) -> list[Shot]:
        """Send a plan and wait for its answers; what has none by then is broken."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        shots = [Shot(at, kind) for at, kind in plan]
        done = asyncio.Event()
        left = len(shots)

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        for shot in shots:
            loop.call_at(began + shot.due_s, self._send, shot, began + shot.due_s, ended)
        if shots:
            try:
                await asyncio.wait_for(done.wait(), shots[-1].due_s + patience_s)
            except TimeoutError:
                self.close()
        return shots

    async def ask(self, kind: str) -> Shot:
        """Send one now."""
        (shot,) = await self.fire([(0.0, kind)])
        return shot

    async def saturate(self, kind: str, callers: int, secs: float) -> list[Shot]:
        """So many callers who each ask again when answered."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        shots: list[Shot] = []

        async def call() -> None:
            while loop.time() < began + secs:
                at = loop.time() - began
                shot = await self.ask(kind)
                shot.due_s = at
                shots.append(shot)

        await asyncio.gather(*(call() for _ in range(callers)))
        return shots

    def close(self) -> None:
        """Close idle connections."""
        for line in self.idle:
            line.transport.close()
        self.idle.clear()

    def _send(self, shot: Shot, due: float, ended: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        shot.lag_ms = (loop.time() - due) * 1e3
        if self.idle:
            self.idle.pop().send(shot, due, self._requests[shot.kind](), ended)
            return
        task = loop.create_task(self._connect(shot, due, ended))
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    async def _connect(self, shot: Shot, due: float, ended: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(lambda: _Line(self), self._host, self._port)
        except OSError:
            shot.took_ms = (loop.time() - due) * 1e3
            ended()
        else:
            line.send(shot, due, self._requests[shot.kind](), ended)


class _Line(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, owner: OpenLoop) -> None:
        self._owner = owner
        self._got = bytearray()
        self._shot: Shot | None = None
        self._due = 0.0
        self._ended: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)

    def send(self, shot: Shot, due: float, request: bytes, ended: Callable[[], None]) -> None:
        """Ask."""
        self._shot, self._due, self._ended = shot, due, ended
        self._got.clear()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        shot = self._shot
        end = self._got.find(b"\r\n\r\n")
        if shot is None or end < 0:
            return
        head = bytes(self._got[: end + 2])
        length = _LENGTH.search(head)
        if length is None or len(self._got) < end + 4 + int(length[1]):
            return
        shot.status = int(head[9:12])
        shot.queued_ms = _number(_QUEUED, head)
        shot.pause_ms = _number(_PAUSE, head)
        self._over()
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()
        else:
            self._owner.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self in self._owner.idle:
            self._owner.idle.remove(self)
        if self._shot is not None:
            self._over()

    def _over(self) -> None:
        assert self._shot is not None
        self._shot.took_ms = (time.monotonic() - self._due) * 1e3
        self._shot = None
        self._ended()


def _number(pattern: re.Pattern[bytes], head: bytes) -> float:
    found = pattern.search(head)
    return float(found[1]) if found else 0.0


def _nothing() -> None:
    """Nobody waits for an answer."""
