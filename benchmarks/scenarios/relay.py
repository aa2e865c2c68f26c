"""Unary chat through each gateway to one upstream: what a request costs."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.ledger import COUNTED, miscounted
from benchmarks.load import Shape
from benchmarks.report import Row, Series
from benchmarks.scenario import OURS, RELAYED, Column, Scenario, everyone
from benchmarks.targets import Live


def run(bench: Bench) -> dict[str, Series]:
    """Compare all targets; ours then prove that no call is lost or made twice."""

    def measure(live: Live) -> Row:
        return bench.measure(live, Shape(bench.options.conns, extra=live.extra))

    found = bench.compare(everyone(bench), measure)
    for name in OURS:
        if name in found and found[name].rows:
            found[name].rows[-1]["miscounted"] = miscounted(bench, name)
    return found


SCENARIO = Scenario(
    title="Unary relay",
    method="POST /v1/chat/completions, unique bodies of about 260 bytes, keep-alive; CPU = user + "
    "system of all the gateway's processes per finished request. Afterwards ours gets "
    f"{COUNTED:,} requests and is drained: client successes, upstream requests and call records "
    "must all be that many.",
    columns=(*RELAYED, Column("miscounted", "miscounted")),
    plot=RELAYED[0],
    run=run,
)
