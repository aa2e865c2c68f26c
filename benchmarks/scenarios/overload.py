"""More than a backend can answer: what is still answered, who gets it, and how fast it is over."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping
from itertools import count
from random import Random

import uvloop

from benchmarks import overload as of
from benchmarks.bench import Bench, say, short
from benchmarks.gates import GATES
from benchmarks.load import tag
from benchmarks.openloop import OpenLoop, Shot, arrivals
from benchmarks.payload import DIGITS, Payload
from benchmarks.peers import KEY, SECOND_KEY
from benchmarks.render import gates
from benchmarks.report import Report, Row, Series
from benchmarks.scenario import Column, Scenario
from benchmarks.targets import Live, Skipped

TARGET = "tpo-overload"
PLACES, SERVICE_MS, AGING_S = 16, 50, 0.25
PATIENCE_S = 0.1
STEPS = (0.5, 1.0, 2.0, 3.0, 5.0)
AFTER_S = 6.0
SEED = 20
OVERDUE_S = 4 * AGING_S
LOW_SHARE = 0.2
"""Of the capacity, nearly the quarter that those overdue have."""
KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "plain": (KEY, {"x-stainless-read-timeout": str(PATIENCE_S)}),
    "guest": (SECOND_KEY, {"x-stainless-read-timeout": str(PATIENCE_S)}),
    "low": (SECOND_KEY, {"x-tpo-priority": "low"}),
    "patient": (KEY, {}),
    "failing": (KEY, {"x-sim-error": "500"}),
}


def run(bench: Bench) -> dict[str, Series]:
    """Take one gateway through all phases, once per round."""
    found: dict[str, Series] = {}
    if not bench.wanted([TARGET]):
        return found
    for number in range(bench.options.rounds):
        try:
            with bench.place.start(TARGET, workers=2) as live:
                rows = uvloop.run(phases(live, bench.options.secs, SEED + number))
        except Skipped as reason:
            say(f"  {TARGET}: skipped: {reason}")
            return {TARGET: Series(skipped=str(reason))}
        for name, row in rows.items():
            row["round"] = number
            found.setdefault(name, Series()).rows.append(row)
            say(f"  {number + 1} {name}: {short(row)}")
    say(judged(found))
    return found


async def phases(live: Live, secs: float, seed: int) -> dict[str, Row]:
    """All phases against one gateway; a row each."""
    rng, client, rows = Random(seed), OpenLoop(live.url, requests(live.url)), {}
    await client.saturate("patient", 2 * PLACES, 1.0)
    full = await client.saturate("patient", 2 * PLACES, secs)
    capacity = of.good_per_s([s for s in full if s.due_s < secs], secs)
    rows["capacity"] = {"good_per_s": round(capacity, 1), "failed": of.failed(full)}
    usual_ms = 0.0
    for step in STEPS:
        plan = arrivals(step * capacity, secs, rng)
        if step == STEPS[-1]:  # the load drops at once, whatever is still on its way
            plan += arrivals(STEPS[0] * capacity, AFTER_S, rng, start_s=secs)
        shots = await client.fire(plan)
        under = [shot for shot in shots if shot.due_s < secs]
        rows[f"{step:g}x"] = step_row(under, secs, capacity, step)
        usual_ms = usual_ms or of.p99_good_ms(under)
        if step == STEPS[-1]:
            after = [shot for shot in shots if shot.due_s >= secs]
            for shot in after:
                shot.due_s -= secs
            rows["after"] = step_row(after, AFTER_S, capacity, STEPS[0])
            rows["after"]["recovery_s"] = of.recovery_s(after, usual_ms, AFTER_S)
        rows[f"{step:g}x"]["against_half"] = round(of.p99_good_ms(under) / usual_ms, 3)
    rows["tenants"] = await tenants(client, capacity, secs, rng)
    rows["low"] = await low(client, capacity, secs, rng)
    rows["outage"] = await outage(client, live, capacity, secs, rng)
    client.close()
    return rows


def step_row(shots: list[Shot], secs: float, capacity: float, step: float) -> Row:
    """What one amount of load came to."""
    good = of.good_per_s(shots, secs)
    return {
        "offered": step,
        "sent_per_s": round(len(shots) / secs, 1),
        "good_per_s": round(good, 1),
        "share": round(good / (capacity * min(step, 1.0)), 4),
        "p99_ms": round(of.p99_good_ms(shots), 2),
        "refused": sum(shot.refused for shot in shots),
        "refused_p99_ms": round(of.p99_refused_ms(shots), 2),
        "told_off_by": round(of.told_off_by(shots), 3),
        "lag_p99_ms": round(of.percentile([shot.lag_ms for shot in shots], 0.99), 2),
        "failed": of.failed(shots),
    }


async def tenants(client: OpenLoop, capacity: float, secs: float, rng: Random) -> Row:
    """Three times too much, a tenth of it from another tenant, who has a right to all it asks."""
    shots = await client.fire(arrivals(3 * capacity, secs, rng, {"plain": 0.9, "guest": 0.1}))
    return step_row(shots, secs, capacity, 3.0) | {
        "share_of_fair": round(of.share_of_fair(shots, "guest", capacity, secs), 4)
    }


async def low(client: OpenLoop, capacity: float, secs: float, rng: Random) -> Row:
    """Three times too much of normal calls for longer than the low ones may have to wait."""
    plan = arrivals(3 * capacity, secs + 2 * OVERDUE_S, rng)
    plan += arrivals(LOW_SHARE * capacity, secs, rng, {"low": 1.0})
    shots = await client.fire(sorted(plan))
    return {
        "wait_of_bound": round(of.wait_of_bound(shots, "low", OVERDUE_S, capacity, PLACES), 3),
        "low_calls": sum(shot.kind == "low" for shot in shots),
        "failed": of.failed(shots),
    }


async def outage(client: OpenLoop, live: Live, capacity: float, secs: float, rng: Random) -> Row:
    """A backend that answers nothing but errors: how often it is asked."""
    before = await asked(live)
    shots = await client.fire(arrivals(capacity / 2, secs, rng, {"failing": 1.0}))
    return {
        "sent_per_s": round(len(shots) / secs, 1),
        "amplification": round((await asked(live) - before) / max(len(shots), 1), 4),
    }


async def asked(live: Live) -> float:
    """How many requests the simulator has had."""

    def read() -> float:
        url = f"{live.url}/v1/metrics"
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            series = json.load(reply)["metrics"].get("llm_simulation_requests_total", [])
        return float(sum(sample["value"] for sample in series))

    return await asyncio.to_thread(read)


def requests(url: str) -> dict[str, Callable[[], bytes]]:
    """What makes the next request of each kind."""
    numbers = count()
    return {kind: _maker(url, key, headers, numbers) for kind, (key, headers) in KINDS.items()}


def _maker(
    url: str, key: str, headers: Mapping[str, str], numbers: count[int]
) -> Callable[[], bytes]:
    before, after = Payload(tag(), headers=headers).pieces(url)
    before = before.replace(f"Bearer {KEY}".encode(), f"Bearer {key}".encode())
    return lambda: b"%b%0*d%b" % (before, DIGITS, next(numbers), after)


def judged(found: Mapping[str, Series]) -> str:
    """The figures of this scenario, their gates and whether these are met."""
    report = Report(
        scenario="overload", title="", date="", quick=False, machine={}, versions={}, method={},
        targets=dict(found),
    )  # fmt: skip
    return gates({"overload": report}, [gate for gate in GATES if gate.scenario == "overload"])


SCENARIO = Scenario(
    title="Overload",
    method=f"Two workers on one core, the built-in simulator with {PLACES} places of {SERVICE_MS} "
    "ms behind them; capacity is what twice as many callers get, in a closed loop.  Then an open "
    "loop of so many times that, at random instants, from callers who wait "
    f"{PATIENCE_S * 1e3:.0f} ms for a place; latencies count from the instant a request was due. "
    "The load falls from 5x to 0.5x at once (after); a tenth of 3x is another tenant's "
    "(tenants); low calls of a fifth of it wait behind 3x of normal ones (low); the backend "
    "answers errors only (outage).",
    columns=(
        Column("offered", "offered"),
        Column("answers/s", "good_per_s"),
        Column("of what can be", "share"),
        Column("p99 ms", "p99_ms"),
        Column("refused", "refused"),
        Column("refused p99 ms", "refused_p99_ms"),
        Column("retry-after off by", "told_off_by"),
        Column("recovery s", "recovery_s"),
        Column("of the fair share", "share_of_fair"),
        Column("wait of bound", "wait_of_bound"),
        Column("asked per call", "amplification"),
        Column("failed", "failed"),
    ),
    run=run,
)
