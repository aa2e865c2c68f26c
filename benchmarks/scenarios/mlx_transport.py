"""Our MLX engine kept by a gateway: asked over shared memory against asked by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import aiohttp
import uvloop

from benchmarks.bench import Bench, say, short
from benchmarks.generating import TOKENS, Generated
from benchmarks.hosting import ours
from benchmarks.procs import NotReadyError
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.scenarios.mlx import build
from tpo_mp.supervisor.client import request

RINGS, HTTP = "rings", "http"
CLIENTS: Final = (1, 8, 32)
CALLS: Final = {1: 12, 8: 64, 32: 128}
READY_S: Final = 90.0
SEED: Final = 7
_ENGINE: Final = """
[[engines]]
name = "{name}"
kind = "mlx"
model = "{model}"
models = ["{name}"]
rings = {rings}
"""


def run(bench: Bench) -> dict[str, Series]:
    """Ask two engines of one gateway in turn, one over each."""
    names = bench.wanted((RINGS, HTTP))
    found = {name: Series() for name in names}
    try:
        model = build(bench.work / "mlx-model")
    except ImportError as e:
        return {name: Series(skipped=f"not installed: {e.name}") for name in names}
    try:
        with _gateway(bench, model) as (url, status):
            for number in range(bench.options.rounds):
                turn = number % max(len(names), 1)
                for name in names[turn:] + names[:turn]:
                    row = uvloop.run(_measure(url, name, status, number, bench.options.quick))
                    found[name].rows.append({"round": number} | row)
                    say(f"  {number + 1} {name}: {short(row)}")
    except NotReadyError as reason:
        return {name: Series(skipped=str(reason)) for name in names}
    return found


@contextlib.contextmanager
def _gateway(bench: Bench, model: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    config = "".join(
        _ENGINE.format(name=name, model=model, rings=str(name == RINGS).lower())
        for name in (RINGS, HTTP)
    )
    with ours(bench, "serve", "mlx-gateway", config, ready_s=READY_S) as (url, state):
        yield url, _loaded(state)


def _loaded(state: Path) -> Mapping[str, Any]:
    """Wait for both engines and their transports; answers the host's status."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        seen: Mapping[str, Any] = request(state, "status")
        rows = {row["engine"]: row["transport"] for row in seen["engines"]}
        if rows == {RINGS: "rings", HTTP: "http"}:
            return seen
        time.sleep(0.1)
    raise NotReadyError(f"engines not ready after {READY_S:g} s: {rows}")


async def _measure(url: str, name: str, status: Mapping[str, Any], number: int, quick: bool) -> Row:
    worker = status["slots"][0]["pid"]
    engine = next(row["pid"] for row in status["engines"] if row["engine"] == name)
    row: Row = {"failed": 0}
    timeout = aiohttp.ClientTimeout(total=120)
    for clients in CLIENTS:
        rng = Random(SEED + number)
        connector = aiohttp.TCPConnector(limit=clients)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
            warm = Generated(session, name, rng)
            await warm.clients(clients, clients)
            asked = Generated(session, name, rng)
            before = [_main_thread_s(pid) for pid in (worker, engine)]
            took = await asked.clients(clients, clients if quick else CALLS[clients])
            await asyncio.sleep(0.05)
            after = [_main_thread_s(pid) for pid in (worker, engine)]
        spent = [(b - a) / max(asked.tokens, 1) * 1e6 for a, b in zip(before, after, strict=True)]
        row |= {
            f"worker_us_{clients}": round(spent[0], 1),
            f"engine_us_{clients}": round(spent[1], 1),
            f"tokens_per_s_{clients}": round(asked.tokens / took, 1),
            f"first_ms_{clients}": round(median(asked.first_s) * 1e3, 2) if asked.first_s else 0.0,
            "failed": row["failed"] + asked.failed + warm.failed,
        }
    return row


def _main_thread_s(pid: int) -> float:
    """CPU of a process's loop, without the model's own threads."""
    text = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text()
    return int(text.split()[0]) / 1e9


SCENARIO = Scenario(
    title="MLX engine through the gateway, by transport",
    method=f"One gateway of one worker keeps two engines of the same model, one asked over shared "
    f"memory and one by HTTP, in turn. Streamed chats of at most {TOKENS} tokens, of 1, 8 and 32 "
    f"clients ({', '.join(str(CALLS[c]) for c in CLIENTS)} calls). CPU is that of the loops, in "
    "µs a token: the worker's and the engine's, without the thread of the model. First: until the "
    "first text, median.",
    columns=(
        *(
            column
            for clients in CLIENTS
            for column in (
                Column(f"worker µs, {clients}", f"worker_us_{clients}"),
                Column(f"worker ratio, {clients}", f"worker_us_{clients}", over=HTTP),
                Column(f"engine µs, {clients}", f"engine_us_{clients}"),
                Column(f"engine ratio, {clients}", f"engine_us_{clients}", over=HTTP),
                Column(f"first ms, {clients}", f"first_ms_{clients}"),
                Column(f"tokens/s, {clients}", f"tokens_per_s_{clients}"),
            )
        ),
        Column("failed", "failed"),
    ),
    run=run,
)
