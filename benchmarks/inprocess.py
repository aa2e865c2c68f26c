"""Calls per second through a pipeline in this process; prints one row as JSON.

Uses ``tpo_mp.spawn_pipeline("echo")`` as an asynchronous context manager whose value answers
``await pipeline.infer(body)`` with a reply of the given chat body, 64 callers at a time.
``--governed`` gives it limits and budgets, and calls that cache and deduplication take part in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import uvloop

import tpo_mp

from .configs import GOVERNED_EXTRA, governed_rules
from .load import tag
from .payload import DIGITS, Payload
from .report import Row
from .stats import percentile

CALLERS = 64
WARM_UP_S = 0.5


async def calls(pipeline: Any, secs: float, extra: Mapping[str, Any]) -> tuple[array[float], float]:
    """Keep the callers busy; answer the latency of every call and the CPU seconds they took."""
    latencies = array("d")
    head, after = Payload(tag(), extra=extra).pieces("http://in.process")
    before = head.partition(b"\r\n\r\n")[2]
    clock = time.perf_counter
    sent = 0
    cpu, end = time.process_time(), clock() + secs

    async def caller() -> None:
        nonlocal sent
        now = clock()
        while True:  # each asks once at least, however late its turn comes
            sent += 1
            reply = await pipeline.infer(b"%b%0*d%b" % (before, DIGITS, sent, after))
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}")
            began, now = now, clock()
            latencies.append(now - began)
            if now >= end:
                return

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return latencies, time.process_time() - cpu


async def measure(
    spawn: Callable[[str], Any], secs: float, extra: Mapping[str, Any] | None = None
) -> Row:
    """Warm a pipeline and measure it; every body has the fields of ``extra``, too."""
    more = extra or {}
    async with spawn("echo") as pipeline:
        await calls(pipeline, min(WARM_UP_S, secs), more)
        began = time.perf_counter()
        latencies, cpu = await calls(pipeline, secs, more)
        elapsed = time.perf_counter() - began
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "rps": round(len(ordered) / elapsed, 1),
        "cpu_us": round(cpu / len(ordered) * 1e6, 2),
        "p50_ms": round(percentile(ordered, 0.5) * 1e3, 4),
        "p99_ms": round(percentile(ordered, 0.99) * 1e3, 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.inprocess", description=__doc__)
    parser.add_argument("--secs", type=float, default=4.0)
    parser.add_argument("--governed", action="store_true")
    options = parser.parse_args()
    spawn, extra = tpo_mp.spawn_pipeline, {}
    if options.governed:
        spawn, extra = partial(spawn, config=governed_rules()), GOVERNED_EXTRA
    print(json.dumps(uvloop.run(measure(spawn, options.secs, extra))))


if __name__ == "__main__":
    main()
