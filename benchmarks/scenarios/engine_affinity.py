"""What real engines need not compute again when a conversation comes back to the one that knows it.

As ``affinity``, before two engines with a tiny model that the gateway starts: two of our MLX
engines, and two ``llama-server`` where that is found (``TPO_LLAMA_SERVER``, or in the path).
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.configs import REAL
from benchmarks.remembering import CACHED, FAILED, P50
from benchmarks.report import Series
from benchmarks.scenario import Column, Scenario
from benchmarks.scenarios.affinity import SEED, SESSIONS, THINKS_S, hold

TURNS, WORDS = 6, 30
"""Fewer than before simulated ones: these compute, on the cores of the gateway."""
ANSWER = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}


def run(bench: Bench) -> dict[str, Series]:
    """Hold the same conversations through gateways of one and of two workers."""
    return hold(bench, tuple(REAL), TURNS, WORDS, ANSWER)


SCENARIO = Scenario(
    title="Conversations before two real engines",
    method=f"{SESSIONS} conversations of {TURNS} turns at the same time, {WORDS} words a turn, "
    f"{THINKS_S:g} s of thinking on average (seed {SEED} plus the round), before two engines of a "
    "tiny model with random weights, each of which can remember about three quarters of them; from "
    "the second turns on. A session leaves its engine above twice its fair share of calls. "
    "Remembered is what the engines say in their usage. Gateway, engines and clients share two "
    "cores, so times say little.",
    columns=(Column("turns", "turns"), CACHED, P50, FAILED),
    run=run,
    plot=CACHED,
)
