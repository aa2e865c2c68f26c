"""The simulated provider: how soon it is there, how fast, how punctual, how large."""

from __future__ import annotations

import math
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.bench import Bench, say, short
from benchmarks.configs import PACED_TOKENS
from benchmarks.load import Shape, tag
from benchmarks.machine import ROOT
from benchmarks.procs import Cores, NotReadyError, Process, cpu_s, on_cores
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live, Skipped

SHORT = 10
LONG = 400
STREAMS = 5_000
WORKERS = 2
TOGETHER = 16
"""Connections to the two workers; more of them would wait for each other."""
HELD_S = 8.0
LAG = "tpo_sim_schedule_lag_seconds"


def run(bench: Bench) -> dict[str, Series]:
    """Measure speed beside the echo backend, then punctuality on workers of its own."""
    found = bench.compare(["tpo-echo", "tpo-simulator"], lambda live: speed(bench, live))
    # Two workers take both cores, the client what it needs of either: it reads nothing.
    spread = replace(bench.place, cores=Cores(0, 0, pinned=False))
    wide = replace(bench, place=spread, options=replace(bench.options, rounds=1))
    both = bench.cores.for_both()
    with on_cores(both):
        found |= wide.compare(
            ["tpo-simulator-paced"], lambda live: punctual(wide, live), workers=WORKERS
        )
        found |= wide.compare(
            ["tpo-simulator-two"], lambda live: together(wide, live), workers=WORKERS
        )
    one = bench.cores.for_gateway()
    found |= wide.repeat("tpo-simulator-boot", "benchmarks.booting", both)
    found |= wide.repeat("tpo-simulator-boot-one-core", "benchmarks.booting", one)
    return found | wide.repeat("tpo-simulator-arrivals", "benchmarks.arriving", both)


def speed(bench: Bench, live: Live) -> Row:
    """Whole answers of ten tokens, and streams of four hundred events of one token each."""
    row = bench.measure(live, Shape(bench.options.conns, extra={"max_tokens": SHORT}))
    if live.name == "tpo-echo":
        return row
    streams = bench.measure(live, Shape(16, stream=True, extra={"max_tokens": LONG}))
    row["tokens_per_s"] = round(streams["rps"] * LONG)
    row["cpu_us_token"] = round(streams["cpu_us"] / LONG, 2)
    row["failed"] += streams["failed"]
    return row


def together(bench: Bench, live: Live) -> Row:
    """Whole answers of two workers, which share both cores with whoever asks."""
    row = bench.measure(live, Shape(TOGETHER, extra={"max_tokens": SHORT}))
    return {"two_rps": row["rps"], "two_p99_ms": row["p99_ms"], "failed": row["failed"]}


def punctual(bench: Bench, live: Live) -> Row:
    """Hold streams that get a token every 100 ms, and read from the workers how late these are."""
    count = 500 if bench.options.quick else STREAMS
    assert live.process is not None
    before_mib = live.process.pss_mib()
    argv = [sys.executable, "-m", "benchmarks.streams", live.url, "--tag", tag(), "--unread"]
    argv += ["--count", str(count), "--secs", "30", "--tokens", str(PACED_TOKENS)]
    holder = Process(argv, log=bench.work / "streams.log", cwd=ROOT)
    try:
        opened = int(holder.wait_line(r"^holding (\d+)", 60)[1])
        start, cpu_at, began = lags(live.url), cpu(live), time.monotonic()
        time.sleep(1.0 if bench.options.quick else HELD_S)
        end, secs = lags(live.url), time.monotonic() - began
        row: Row = {
            "streams": opened,
            "lag_p99_ms": round(p99(start, end) * 1e3, 2),
            "lag_tokens_per_s": round((total(end) - total(start)) / secs),
            "lag_cores": round((cpu(live) - cpu_at) / secs, 2),
            "kib_each": round((live.process.pss_mib() - before_mib) * 1024 / max(opened, 1), 2),
            "failed": count - opened,
        }
    except NotReadyError as error:
        raise Skipped(str(error)) from error
    finally:
        holder.stop(5)
    say(f"  {live.name}: {short(row)}")
    return row


def cpu(live: Live) -> float:
    """CPU seconds of all the target's processes."""
    return cpu_s(live.pids())


def lags(url: str) -> dict[float, int]:
    """The histogram of lags so far: bound in seconds -> tokens up to it."""
    with urllib.request.urlopen(url + "/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(LAG + r'_bucket\{le="([^"]+)"\} (\S+)', text)
    return {math.inf if bound == "+Inf" else float(bound): int(float(n)) for bound, n in found}


def total(seen: Mapping[float, int]) -> int:
    """Tokens counted."""
    return seen.get(math.inf, 0)


def p99(start: Mapping[float, int], end: Mapping[float, int]) -> float:
    """The 99th percentile of what came between two readings, straight within a bucket."""
    wanted = 0.99 * (total(end) - total(start))
    low, below = 0.0, 0
    for bound in sorted(end):
        upto = end[bound] - start.get(bound, 0)
        if upto >= wanted:
            if math.isinf(bound) or upto == below:
                return low
            return low + (bound - low) * (wanted - below) / (upto - below)
        low, below = bound, upto
    return low


SCENARIO = Scenario(
    title="Simulated provider",
    method=f"Without latency on one worker: whole answers of {SHORT} tokens, and streams of {LONG} "
    "events of one token each at 16 connections.  With a token every 100 ms on two workers, which "
    f"share both cores with a client that reads only the first byte: {STREAMS:,} streams, lateness "
    f"as the workers publish it over {HELD_S:g} s.  KiB each is growth of all processes per "
    "stream.  Ready after: from the command to its ready line, one worker, on "
    "two cores, and all on one.",
    columns=(
        Column("requests/s", "rps"),
        Column("CPU µs", "cpu_us"),
        Column("CPU / echo", "cpu_us", over="tpo-echo"),
        Column("streamed tokens/s", "tokens_per_s"),
        Column("CPU µs / token", "cpu_us_token"),
        Column("streams open", "streams"),
        Column("lag p99 ms", "lag_p99_ms"),
        Column("tokens/s at that", "lag_tokens_per_s"),
        Column("cores at that", "lag_cores"),
        Column("KiB each", "kib_each"),
        Column("requests/s of two", "two_rps"),
        Column("p99 ms of two", "two_p99_ms"),
        Column("ready after s", "boot_s"),
        Column("arrival p50 ms", "arrival_p50_ms"),
        Column("arrival p99 ms", "arrival_p99_ms"),
        Column("failed", "failed"),
    ),
    run=run,
)
