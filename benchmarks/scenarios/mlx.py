"""Our MLX engine process against ``mlx_lm``'s own server, on one small model."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import uvloop

from benchmarks.bench import Bench, say, short
from benchmarks.generating import TOKENS, generate
from benchmarks.hosting import running, wait_healthy
from benchmarks.procs import NotReadyError, free_port
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario

OURS, THEIRS = "mlx_engine", "mlx_lm-server"
MODULES = {THEIRS: ("mlx_lm", "server", "--log-level", "WARNING"), OURS: ("hardware.mlx_engine",)}
CLIENTS = (1, 8, 32)
CALLS = {1: 12, 8: 48, 32: 128}
READY_S = 60.0
SEED = 7


def run(bench: Bench) -> dict[str, Series]:
    """Start each once a round, in rotating order, and have 1, 8 and 32 clients ask it."""
    found = {name: Series() for name in bench.wanted(tuple(MODULES))}
    try:
        model = build(bench.work / "mlx-model")
    except ImportError as e:
        return {name: Series(skipped=f"not installed: {e.name}") for name in found}
    for number in range(bench.options.rounds):
        turn = number % max(len(found), 1)
        names = list(found)
        for name in names[turn:] + names[:turn]:
            series = found[name]
            if series.skipped:
                continue
            try:
                with started(bench, name, model) as url:
                    row = measure(url, model, number, quick=bench.options.quick)
            except NotReadyError as reason:
                series.skipped = str(reason)
                say(f"  {name}: skipped: {reason}")
                continue
            series.rows.append({"round": number} | row)
            say(f"  {number + 1} {name}: {short(series.rows[-1])}")
    return found


def build(folder: Path) -> Path:
    """Write the model; raises ``ImportError`` where MLX is not installed."""
    from tests.support import tiny_model

    return tiny_model.build(folder).resolve()


@contextlib.contextmanager
def started(bench: Bench, name: str, model: Path) -> Iterator[str]:
    """Run one server on the gateway's core until the block ends; answers its URL."""
    module, *words = MODULES[name]
    if importlib.util.find_spec(module) is None:
        raise NotReadyError("not installed")
    port = free_port()
    argv = [sys.executable, "-W", "ignore", "-m", module, *words, "--model", str(model)]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    hub = bench.work / "hub"  # mlx_lm's server lists it, so it must exist
    hub.mkdir(exist_ok=True)
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "TOKENIZERS_PARALLELISM": "false"}
    log = bench.work / f"{name}.log"
    with running(bench, argv, log, env=env, grace_s=3) as process:
        url = f"http://127.0.0.1:{port}"
        wait_healthy(process, url, READY_S)
        yield url


def measure(url: str, model: Path, number: int, *, quick: bool = False) -> Row:
    """The figures of one round; both servers are asked the same prompts in it."""
    rng = Random(SEED + number)
    row: Row = {"failed": 0}
    for clients in CLIENTS:
        calls = clients if quick else CALLS[clients]
        seen = uvloop.run(generate(url, str(model), clients, calls, rng))
        row |= seen | {"failed": row["failed"] + seen["failed"]}
    return row


SCENARIO = Scenario(
    title="MLX engine",
    method=f"Streamed chats, each with a prompt of its own and at most {TOKENS} tokens of answer, "
    f"of 1, 8 and 32 clients ({', '.join(str(CALLS[c]) for c in CLIENTS)} calls), who ask again "
    "as soon as they are answered. The model is a Llama of two layers with random weights, so what "
    "is compared is what a server adds to a step. Each server has one core. First: until the first "
    "text, median. Ratios are to mlx_lm's server in the same rounds.",
    columns=(
        *(
            column
            for clients in CLIENTS
            for column in (
                Column(f"tokens/s, {clients}", f"tokens_per_s_{clients}"),
                Column(f"tokens/s ratio, {clients}", f"tokens_per_s_{clients}", over=THEIRS),
                Column(f"first ms, {clients}", f"first_ms_{clients}"),
                Column(f"first ratio, {clients}", f"first_ms_{clients}", over=THEIRS),
            )
        ),
        Column("failed", "failed"),
    ),
    run=run,
    plot=Column("tokens/s of 32 clients", f"tokens_per_s_{CLIENTS[-1]}"),
)
