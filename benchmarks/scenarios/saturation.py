"""A simulated engine under more and more clients: the cliff, through a real simulate process."""

from __future__ import annotations

import subprocess
from dataclasses import replace

from benchmarks.bench import Bench, say, short
from benchmarks.engine_fit import Table, serve
from benchmarks.hosting import ours
from benchmarks.procs import NotReadyError
from benchmarks.report import Row, Series
from benchmarks.saturating import MODEL, label, measured
from benchmarks.scenario import Column, Scenario
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
        with ours(bench, "simulate", "saturation", CONFIG) as (url, _):
            for turn in range(bench.options.rounds):
                for n in clients:
                    row = (
                        measured(url, n, rounds=ROUNDS, prompt=PROMPT) | alone(n) | {"round": turn}
                    )
                    say(f"  {turn + 1} {n} clients: {short(row)}")
                    found[label(n)].rows.append(row)
    except (NotReadyError, subprocess.SubprocessError) as error:
        for series in found.values():
            series.skipped = series.skipped or str(error)
    return found


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
