"""Sends a benchmark's requests: so many at once, the next one when one is answered.

Invariants: closed loop; no more than ``at_once`` are open and no more than ``most`` are sent; after
``for_s`` none is begun, and those that are open have their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

import aiohttp

from tpo_mp.simulator.measured import AnswerWatch, BenchmarkOutcome

from .load_traffic import PROGRESS_S, Traffic, ask_one

_PAUSE_S: Final = 0.05
"""Wait of a client that got no answer at all, so that a dead server is not hammered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """How many requests, how many at once, and for how long at most."""

    most: int
    at_once: int
    for_s: float
    warmup: int = 0
    stream: bool = False


async def run_benchmark(
    loop: ClosedLoop, traffic: Traffic, progress: Callable[[float, BenchmarkOutcome], None]
) -> BenchmarkOutcome:
    """Warm up, then measure; ``progress(seconds, outcome)`` is called about once a second."""
    timeout = aiohttp.ClientTimeout(total=traffic.timeout_s)
    connector = aiohttp.TCPConnector(limit=loop.at_once)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        if loop.warmup:
            unseen = BenchmarkOutcome()
            await _clients(session, loop, traffic, unseen, loop.warmup, monotonic() + loop.for_s)
        seen, began_at = BenchmarkOutcome(), monotonic()

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_S)
                progress(monotonic() - began_at, seen)

        telling = asyncio.create_task(tell())
        try:
            await _clients(session, loop, traffic, seen, loop.most, began_at + loop.for_s)
        finally:
            telling.cancel()
        seen.took_s = monotonic() - began_at
        progress(seen.took_s, seen)
    return seen


async def _clients(
    session: aiohttp.ClientSession,
    loop: ClosedLoop,
    traffic: Traffic,
    seen: BenchmarkOutcome,
    most: int,
    ends_at: float,
) -> None:
    async def client() -> None:
        while seen.sent < most and monotonic() < ends_at:
            seen.sent += 1
            await _one(session, traffic, seen, stream=loop.stream)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(loop.at_once, most)):
            group.create_task(client())


async def _one(
    session: aiohttp.ClientSession, traffic: Traffic, seen: BenchmarkOutcome, *, stream: bool
) -> None:
    watch, sent_at = AnswerWatch(stream=stream), monotonic()
    failed = await ask_one(session, traffic, lambda data: watch.feed(data, monotonic()))
    now = monotonic()
    if failed:
        seen.failed(failed)
        if not failed.isdecimal():
            await asyncio.sleep(_PAUSE_S)
        return
    watch.end()
    seen.answered(sent_at, now, watch)
