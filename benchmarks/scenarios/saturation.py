"""A simulated engine under more and more clients: the cliff, through a real simulate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.bench import Bench, say, short
from benchmarks.engine_fit import Table, serve
from benchmarks.machine import ROOT
from benchmarks.procs import NotReadyError, Process
from benchmarks.report import Row, Series
from benchmarks.saturating import MODEL
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import READY
from tpo_mp.simulator.engine_presets import PRESETS

PRESET = "nim-70b-fp8"
SPEEDUP = 10
PROMPT = 1000
ANSWER = 100
ROUNDS = 4
CLIENTS = (1, 5, 25, 50, 75, 100, 150, 200)
CONFIG = f"""
[simulator]
models = ["{MODEL}"]
strategy = "fixed"
text = "{" ".join(["word"] * ANSWER)}"
latency = {{ "{MODEL}" = "fast" }}

[simulator.engines.fast]
preset = "{PRESET}"
speedup = {SPEEDUP}
"""


def run(bench: Bench) -> dict[str, Series]:
    """Measure each number of clients against one process, and what the step loop alone says."""
    clients = CLIENTS[::3] if bench.options.quick else CLIENTS
    found = {label(n): Series() for n in clients}
    try:
        with simulating(bench) as url:
            for turn in range(bench.options.rounds):
                for n in clients:
                    row = measure(url, n) | alone(n) | {"round": turn}
                    say(f"  {turn + 1} {n} clients: {short(row)}")
                    found[label(n)].rows.append(row)
    except (NotReadyError, subprocess.SubprocessError) as error:
        for series in found.values():
            series.skipped = series.skipped or str(error)
    return found


def label(clients: int) -> str:
    """Name a number of clients."""
    return f"{clients} client{'s' * (clients > 1)}"


@contextmanager
def simulating(bench: Bench) -> Iterator[str]:
    """One simulator on the gateway's core; ends with the block."""
    home = bench.work / "saturation"
    home.mkdir(exist_ok=True)
    config = home / "tpo.toml"
    config.write_text(CONFIG)
    argv = [sys.executable, "-m", "tpo_mp", "simulate", "--config", str(config), "--port", "0"]
    argv += ["--ops-port", "0", "--workers", "1", "--state-dir", str(home / "state")]
    process = Process(argv, log=home / "log", cores=bench.cores.for_gateway(), cwd=ROOT)
    try:
        yield process.wait_line(READY, 30)["url"]
    finally:
        process.stop()


def measure(url: str, clients: int) -> Row:
    """Let so many clients ask."""
    argv = [sys.executable, "-m", "benchmarks.saturating", url, "--clients", str(clients)]
    argv += ["--prompt", str(PROMPT), "--rounds", str(ROUNDS)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    row: Row = json.loads(out.stdout)
    return row


def alone(clients: int) -> Row:
    """The same load on the step loop alone, without process, connection or token."""
    shape = PRESETS[PRESET].shape
    table = Table("steady", PROMPT, ANSWER, ())
    ttft, itl = serve(replace(shape, prefix_caching=False), table, clients)
    return {"model_ttft_ms": round(ttft / SPEEDUP, 2), "model_itl_ms": round(itl / SPEEDUP, 3)}


SCENARIO = Scenario(
    title="Saturation of a simulated engine",
    method=f"`tpo-mp simulate` with the engine preset `{PRESET}`, {SPEEDUP} times as fast, one "
    f"worker; clients who ask again at once, {PROMPT} tokens in and {ANSWER} out, streamed; the "
    "first of their rounds does not count.  Beside it what the step loop gives without a process.",
    columns=(
        Column("tokens/s", "tok_s"),
        Column("TTFT ms", "ttft_ms"),
        Column("TTFT ms, step loop", "model_ttft_ms"),
        Column("ITL ms", "itl_ms"),
        Column("ITL ms, step loop", "model_itl_ms"),
        Column("failed", "failed"),
    ),
    x=Column("clients", "clients"),
    curves=("tok_s", "ttft_ms", "itl_ms"),
    run=run,
)
