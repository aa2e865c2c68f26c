"""Memory: an idle worker, ten thousand open streams, and a million requests."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.bench import Bench, say, short
from benchmarks.load import Shape, tag
from benchmarks.machine import ROOT
from benchmarks.procs import NotReadyError, Process, pss
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import OURS, Live, Skipped

STREAMS = 10_000
REQUESTS = 1_000_000
SLICE_S = 10.0
EVENLY = 0.9
TARGETS = ("relay", "tpo")


def run(bench: Bench) -> dict[str, Series]:
    """Weigh each target once; memory does not need rounds."""
    single = replace(bench, options=replace(bench.options, rounds=1))
    return single.compare(TARGETS, lambda live: measure(single, live))


def measure(bench: Bench, live: Live) -> Row:
    """Weigh idle, after many requests, and, started anew, with streams open."""
    quick = bench.options.quick
    bench.load.run(live.url, Shape(), 1.0)
    row = weigh(live, "idle") | growth(bench, live, 20_000 if quick else REQUESTS)
    say(f"  {live.name}: {short(row)}")
    wanted = 1000 if quick else STREAMS
    if live.name not in OURS:
        return row | streams(bench, live, min(wanted, stream_limit()))
    # A process may hold only so many sockets; several workers share what one may not have alone.
    workers = math.ceil(wanted / max(1, stream_limit() * EVENLY))
    assert live.process is not None
    live.process.stop()
    with bench.place.start(live.name, workers=workers) as wide:
        bench.load.run(wide.url, Shape(), 1.0)
        return row | streams(bench, wide, wanted) | {"streams_workers": workers}


def weigh(live: Live, prefix: str) -> Row:
    """Answer the PSS of the heaviest worker and of all processes, in MiB."""
    assert live.process is not None
    titles = live.process.titles()
    workers = [pid for pid, title in titles.items() if title.startswith("tpo: shard")]
    by_pid = {pid: pss(pid) for pid in titles}
    heaviest = max(
        (by_pid[pid] for pid in workers or titles), key=lambda kinds: kinds.get("total", 0.0)
    )
    found = {f"{prefix}_worker_mib": heaviest.get("total", 0.0)}
    found |= {
        f"{prefix}_worker_{kind}_mib": heaviest[kind]
        for kind in ("anon", "shmem")
        if kind in heaviest
    }
    found[f"{prefix}_total_mib"] = sum(kinds.get("total", 0.0) for kinds in by_pid.values())
    return {key: round(value, 2) for key, value in found.items()}


def streams(bench: Bench, live: Live, count: int) -> Row:
    """Hold ``count`` streams open; growth is that of all the target's processes."""
    before = weigh(live, "before")
    bench.upstream.set({"hold": True})
    try:
        with holding(bench, live, count) as opened:
            during = weigh(live, "during")
    finally:
        bench.upstream.set({"hold": False})
    return {
        "streams": opened,
        "streams_growth_mib": round(during["during_total_mib"] - before["before_total_mib"], 1),
        "streams_kib_each": round(
            (during["during_total_mib"] - before["before_total_mib"]) * 1024 / max(opened, 1), 2
        ),
        "failed": count - opened,
    }


@contextmanager
def holding(bench: Bench, live: Live, count: int) -> Iterator[int]:
    """Open streams in a process of their own and close them with the block."""
    argv = [sys.executable, "-m", "benchmarks.streams", live.url, "--tag", tag()]
    argv += ["--count", str(count), "--secs", "60"]
    log = bench.work / "streams.log"
    holder = Process(argv, log=log, cores=bench.cores.for_load(), cwd=ROOT)
    try:
        yield int(holder.wait_line(r"^holding (\d+)", 90)[1])
    except NotReadyError as error:
        raise Skipped(str(error)) from error
    finally:
        holder.stop(5)


def growth(bench: Bench, live: Live, count: int) -> Row:
    """Serve ``count`` requests after a tenth as many for warming; growth is per worker."""
    serve(bench, live, count // 10)
    before = weigh(live, "before")
    served = serve(bench, live, count)
    after = weigh(live, "after")
    return {
        "growth_requests": served,
        "growth_worker_mib": round(after["after_worker_mib"] - before["before_worker_mib"], 2),
        "growth_total_mib": round(after["after_total_mib"] - before["before_total_mib"], 2),
    }


def serve(bench: Bench, live: Live, count: int) -> int:
    """Send at least ``count`` requests, in slices, for three minutes at most."""
    served = 0
    secs = min(SLICE_S, max(1.0, count / 20_000))
    for _ in range(18):
        if served >= count:
            break
        served += bench.load.run(live.url, Shape(), secs).requests
    return served


def stream_limit() -> int:
    """Answer how many streams the limit on open files allows: two sockets each, and some air."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, (soft - 1000) // 2)


SCENARIO = Scenario(
    title="Memory",
    method="PSS (shared pages counted once) after one second of load; growth of all processes "
    f"with {STREAMS:,} open streams of which the first event has come, over as many workers as "
    f"the limit on open files asks for; growth of one worker over {REQUESTS:,} requests after a "
    "tenth as many for warming.",
    columns=(
        Column("idle worker MiB", "idle_worker_mib"),
        Column("all processes MiB", "idle_total_mib"),
        Column("streams open", "streams"),
        Column("by workers", "streams_workers"),
        Column("growth with streams MiB", "streams_growth_mib"),
        Column("KiB each", "streams_kib_each"),
        Column("requests served", "growth_requests"),
        Column("growth per worker MiB", "growth_worker_mib"),
        Column("failed", "failed"),
    ),
    run=run,
)
