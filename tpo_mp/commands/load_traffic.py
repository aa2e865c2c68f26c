"""Sends the requests of a load plan, each at its time, and notes what became of them.

Invariants: open loop: a request goes out when it is due, or counts as ``not sent`` when
``most_open`` are still open; every request has a deadline; connections are kept and reused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

import aiohttp

from tpo_mp.simulator.load_plan import LoadOutcome

PROGRESS_S = 1.0
_CHUNK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Where requests go, and what they are."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout_s: float = 60.0
    most_open: int = 1000
    bodies: Callable[[int], bytes] | None = None
    """Makes the body of each request from its number; None: all have the same."""

    def numbered(self, number: int) -> Traffic:
        """The traffic of one request."""
        return self if self.bodies is None else replace(self, body=self.bodies(number))


class Plan(Protocol):
    """When requests go out."""

    @property
    def for_s(self) -> float: ...

    def arrivals(self) -> Iterable[float]: ...


async def send_all(
    plan: Plan, traffic: Traffic, progress: Callable[[float, LoadOutcome, int], None]
) -> LoadOutcome:
    """Send a whole plan; ``progress(seconds, outcome, open)`` is called about once a second."""
    seen, running = LoadOutcome(), set[asyncio.Task[None]]()
    timeout = aiohttp.ClientTimeout(total=traffic.timeout_s)
    connector = aiohttp.TCPConnector(limit=traffic.most_open)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        began_at = monotonic()

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_S)
                progress(monotonic() - began_at, seen, len(running))

        telling = asyncio.create_task(tell())
        for arrival_s in plan.arrivals():
            due_at = began_at + arrival_s
            wait_s = due_at - monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            seen.sent += 1
            if len(running) >= traffic.most_open:
                seen.failed("not sent")
                await asyncio.sleep(0)
                continue
            asked = traffic.numbered(seen.sent - 1)
            task = asyncio.create_task(_one(session, asked, due_at, seen))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)
        telling.cancel()
        seen.took_s = max(monotonic() - began_at, plan.for_s)
        progress(seen.took_s, seen, 0)
    return seen


async def _one(
    session: aiohttp.ClientSession, traffic: Traffic, due_at: float, seen: LoadOutcome
) -> None:
    failed = await ask_one(session, traffic)
    if failed:
        seen.failed(failed)
    else:
        seen.latencies_s.append(monotonic() - due_at)


async def ask_one(
    session: aiohttp.ClientSession,
    traffic: Traffic,
    watch: Callable[[bytes], None] = lambda _data: None,
) -> str:
    """One request, read to its end; empty, or what went wrong.

    ``watch`` is given the body of a good answer, in the pieces that it comes in.
    """
    try:
        async with session.post(traffic.url, data=traffic.body, headers=traffic.headers) as reply:
            if reply.status != 200:
                await reply.read()
                return str(reply.status)
            tail = b""
            async for chunk in reply.content.iter_any():
                watch(chunk)
                tail = (tail + chunk)[-_CHUNK:]
            streamed = reply.content_type == "text/event-stream"
            return "incomplete stream" if streamed and not _complete(tail) else ""
    except TimeoutError:
        return "timeout"
    except aiohttp.ClientError as error:
        return type(error).__name__


def _complete(tail: bytes) -> bool:
    """Whether a stream said that it was through; each family's last words."""
    last = (b"data: [DONE]", b"event: message_stop", b'"finishReason":')
    return any(words in tail for words in last)
