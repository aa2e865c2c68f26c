"""A call that the cache answers: what it costs from socket to socket, and what a lookup does."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench
from benchmarks.load import Shape, tag
from benchmarks.payload import MARK
from benchmarks.report import Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live

TARGETS, LOOKUP = ("tpo", "tpo-governed"), "lookup"


def asked(word: str) -> dict[str, Any]:
    """One question, however often; what changes in its body is no part of what it asks."""
    question = {"role": "user", "content": f"{word}: what is a hit?"}
    return {"messages": [question], "temperature": 0, "stream_options": {"n": MARK}}


def run(bench: Bench) -> dict[str, Series]:
    """Ask the gateway the same over and over, and the cache by itself."""
    word = tag()

    def measure(live: Live) -> Row:
        before = bench.upstream.stats()["requests"]
        conns, extra = bench.options.conns, asked(word)
        row = bench.measure(live, Shape(conns, extra=extra, distinct=1))
        reworded = bench.measure(live, Shape(conns, extra=extra))
        row["reworded_us"] = reworded["cpu_us"]
        row["failed"] += reworded["failed"]
        return row | {"upstream_calls": bench.upstream.stats()["requests"] - before}

    found = bench.compare(TARGETS, measure)
    if LOOKUP in bench.wanted([LOOKUP]):
        found |= bench.repeat(LOOKUP, "benchmarks.lookups", bench.cores.for_gateway())
    return found


SCENARIO = Scenario(
    title="Cache hits",
    method="The same chat at temperature 0 over and over, byte for byte, and then in other bytes "
    "each time (reworded: what differs is no part of the question); the upstream is asked once and "
    "the rest answered from the cache. And the cache by itself, with 10,000 "
    "answers of 1 KiB in it: a lookup that finds nothing, one that finds an answer, and the key of "
    "a body of about 260 bytes, which is made once per call.",
    columns=(
        Column("CPU µs", "cpu_us"),
        Column("CPU µs, reworded", "reworded_us"),
        Column("requests/s", "rps"),
        Column("p50 ms", "p50_ms"),
        Column("upstream calls", "upstream_calls"),
        Column("failed", "failed"),
        Column("µs/lookup, nothing found", "miss_us"),
        Column("µs/lookup, found", "hit_us"),
        Column("µs/key", "key_us"),
        Column("found", "found"),
    ),
    run=run,
)
