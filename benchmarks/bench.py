"""One benchmark run: its options, cores, load generator, upstream, and the interleaved rounds.

Every round starts each target anew, warms it, measures it and ends it, and the order rotates, so
that a slow minute of the machine falls on all targets and ratios stay honest.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .load import Load, Shape
from .machine import ROOT
from .procs import Cores, NotReadyError, Process, on_cores
from .report import Row, Series
from .targets import Live, Place, Skipped

WARM_UP_S = 1.0

Measure = Callable[[Live], Row]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    rounds: int = 3
    secs: float = 4.0
    conns: int = 64
    quick: bool = False
    peers: Path | None = None
    vllm: Path | None = None
    only: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Bench:
    """What scenarios measure with."""

    options: Options
    cores: Cores
    work: Path
    load: Load
    upstream: Upstream
    place: Place

    @classmethod
    @contextlib.contextmanager
    def open(cls, options: Options, cores: Cores, work: Path, kind: str) -> Iterator[Bench]:
        """Start the upstream on the load's core; it ends with the block."""
        with Upstream.start(work, cores) as upstream:
            place = Place(upstream.address, cores, work, options.peers)
            yield cls(options, cores, work, Load(cores.for_load(), work, kind), upstream, place)

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Keep the targets that ``--only`` allows."""
        return [name for name in names if not self.options.only or name in self.options.only]

    def compare(
        self, names: Sequence[str], measure: Measure, *, workers: int = 1
    ) -> dict[str, Series]:
        """Measure every target once per round, in rotating order; a broken one is left out."""
        wanted = self.wanted(names)
        found = {name: Series(version=self.place.version(name)) for name in wanted}
        for number in range(self.options.rounds):
            turn = number % max(len(wanted), 1)
            for name in wanted[turn:] + wanted[:turn]:
                series = found[name]
                if series.skipped:
                    continue
                try:
                    with self.place.start(name, workers=workers) as live:
                        row = measure(live)
                except Skipped as reason:
                    series.skipped = str(reason)
                    say(f"  {name}: skipped: {reason}")
                else:
                    row["round"] = number
                    series.rows.append(row)
                    say(f"  {number + 1} {name}: {short(row)}")
        return found

    def repeat(
        self, target: str, module: str, cores: Sequence[int], *words: str
    ) -> dict[str, Series]:
        """Run a module that prints one row as JSON once per round, on some cores."""
        series = Series()
        if not self.wanted([target]):
            return {}
        argv = [sys.executable, "-m", module, "--secs", str(self.options.secs), *words]
        limit = self.options.secs + 60
        for number in range(self.options.rounds):
            with on_cores(cores):
                out = subprocess.run(
                    argv, capture_output=True, text=True, timeout=limit, cwd=ROOT, check=False
                )
            if out.returncode:
                series.skipped = out.stderr.strip()[-400:]
                say(f"  {target}: skipped: {series.skipped}")
                break
            printed = json.loads(out.stdout).items()
            row = {key: value for key, value in printed if isinstance(value, int | float)}
            row["round"] = number
            series.rows.append(row)
            say(f"  {number + 1} {target}: {short(row)}")
        return {target: series}

    def measure(self, live: Live, shape: Shape) -> Row:
        """Warm one target, then load it and weigh it."""
        self.load.run(live.url, shape, WARM_UP_S)
        pids = live.pids()
        busy, began = core_busy_s(self.cores.gateway), time.monotonic()
        seen = self.load.run(live.url, shape, self.options.secs, pids)
        secs, busy = time.monotonic() - began, core_busy_s(self.cores.gateway) - busy
        row = seen.row()
        # What others took of the gateway's core: a round with much of it is a noisy one.
        row["others_share"] = round(max(0.0, busy - seen.cpu_s) / secs, 3)
        if live.process is None:
            del row["cpu_us"]
        else:
            row["pss_mib"] = round(live.process.pss_mib(), 1)
        return row


class Upstream:
    """The running mock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = url.removeprefix("http://")

    @classmethod
    @contextlib.contextmanager
    def start(cls, work: Path, cores: Cores) -> Iterator[Upstream]:
        """Start it on a free port."""
        argv = [sys.executable, "-m", "benchmarks.upstream"]
        process = Process(argv, log=work / "upstream.log", cores=cores.for_load(), cwd=ROOT)
        try:
            yield cls(process.wait_line(r"^ready (\S+)", 20)[1])
        except NotReadyError as error:
            raise RuntimeError(f"the mock upstream did not start: {error}") from error
        finally:
            process.stop(2)

    def stats(self) -> dict[str, int]:
        """Answer the counters."""
        with urllib.request.urlopen(self.url + "/__stats", timeout=10) as reply:
            counters: dict[str, int] = json.load(reply)
            return counters

    def set(self, change: Mapping[str, float | bool]) -> None:
        """Change its behaviour."""
        data = json.dumps(change).encode()
        urllib.request.urlopen(self.url + "/__set", data=data, timeout=10).close()


def core_busy_s(core: int) -> float:
    """Answer the seconds one core has not been idle since boot."""
    times = psutil.cpu_times(percpu=True)
    if core >= len(times):
        return 0.0
    now = times[core]
    return sum(now) - now.idle - getattr(now, "iowait", 0.0) - getattr(now, "guest", 0.0)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def short(row: Row) -> str:
    """Render a row in one line."""
    return " ".join(f"{key}={value:g}" for key, value in row.items() if key != "round")
