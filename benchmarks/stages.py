"""What single stages cost a call, in this process; prints one row as JSON.

Each case is a stage with some options, on real shared memory of one seat.  Calls go through it one
after the other to a core that answers at once, and are told their end; the same without the stage
is taken off.  Timers turn as on a shard's loop, 20 times a second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, cast

import msgspec
import structlog

from tpo_mp import registry
from tpo_mp.config.prices import Prices
from tpo_mp.http.wheel import GRAIN_S, Wheel
from tpo_mp.pipeline.chain import fold
from tpo_mp.pipeline.endings import ending, tell_ended
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Env, Journal, Live, Store
from tpo_mp.shm.ledger import LEDGER_ROWS, SharedLedger
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.quotas import QUOTAS_REFUSED, QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.shares import SharedShares, ShareSegment
from tpo_mp.types import Call, Reply, Terminal, Usage

BODY: Final = json.dumps(
    {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "x" * 180}]}
).encode()
_FAR: Final = 100_000_000
_WINDOWS: Final = {"rps": _FAR, "rpm": _FAR, "rph": _FAR}
_NEAR: Final = {"rps": _FAR, "rpm": _FAR, "rph": _FAR, "burst": 1000}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    title: str
    stage: str
    options: dict[str, Any]


CASES: Final = {
    "limit_one": Case("`rate_limit`, one level", "rate_limit", {"global": {"rps": _FAR}}),
    "limit_four": Case(
        "`rate_limit`, four levels of three windows", "rate_limit",
        dict.fromkeys(("session", "tenant", "model", "global"), _WINDOWS),
    ),
    "limit_all": Case(
        "the same with tokens and calls at once", "rate_limit",
        dict.fromkeys(
            ("session", "tenant", "model", "global"),
            _WINDOWS | {"tpm": 1_000_000_000, "concurrent": _FAR},
        ),
    ),
    "limit_near": Case("`rate_limit`, one level near its limit", "rate_limit", {"global": _NEAR}),
    "breaker": Case("`breaker`, all well", "breaker", {}),
    "budget_two": Case(
        "`token_budget`, two levels", "token_budget",
        {"global": {"hour": 10**12}, "tenant": {"hour": 10**12}},
    ),
    "retry": Case("`retry`", "retry", {}),
}  # fmt: skip
"""Whoever adds a stage to the hot path adds a case."""


def environment(wheel: Wheel) -> Env:
    """What a shard gives a stage, with one seat and nobody to ask."""
    metrics = MetricsArena.create(1).block(0, 1)
    rows = RowTable.create(LEDGER_ROWS)
    quotas = SharedQuotas(
        QuotaSegment.make(1), rows, seat=0, epoch_of=lambda _seat: 1, sharers=1,
        refused=metrics.counter(*QUOTAS_REFUSED),
    )  # fmt: skip
    return Env(
        clock=time.monotonic,
        random=Random(0),
        metrics=metrics,
        log=structlog.get_logger("tpo_mp"),
        store=cast("Store", None),
        timers=wheel,
        rooms={},
        ledger=SharedLedger(rows, metrics),
        quotas=quotas,
        live=cast("Live", None),
        journal=cast("Journal", None),
        shares=SharedShares(
            ShareSegment.create(1), rows, seat=0, epoch=1, epoch_of=lambda _seat: 1
        ),
        prices=Prices(),
    )


def _core(_call: Call) -> Awaitable[Reply]:
    out: Promise[Reply] = Promise()
    out.resolve(Reply(200, b"{}"))
    return out


def call_us(serve: Callable[[Call], Awaitable[Reply]], wheel: Wheel, secs: float) -> float:
    """CPU microseconds a call takes."""
    ended = ending(Terminal.DONE, Usage(50, 20), None, 1)
    number, turn_at = 0, 0.0
    began, end = time.process_time(), time.monotonic() + secs
    while (now := time.monotonic()) < end:
        if now >= turn_at:
            wheel.tick(now)
            turn_at = now + GRAIN_S
        for _ in range(100):
            call = Call(id="", model="m", body=BODY, stream=False, started_at=now)
            call.tenant, call.tier, call.session = "t", "standard", "s"
            serve(call)
            if call.endings is not None:
                tell_ended(call, ended)
        number += 100
    return (time.process_time() - began) / number * 1e6


def measure(secs: float) -> dict[str, float]:
    """All cases, each beside the calls without it."""
    row: dict[str, float] = {}
    for name, case in CASES.items():
        wheel = Wheel()
        feature = registry.find("stages", case.stage)
        stage = feature.build(msgspec.convert(case.options, feature.Config), environment(wheel))
        spent = call_us(fold([stage], _core), wheel, secs)
        row[f"{name}_us"] = round(spent - call_us(fold([], _core), wheel, secs / 2), 2)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.stages", description=__doc__)
    parser.add_argument("--secs", type=float, default=2.0)
    print(json.dumps(measure(parser.parse_args().secs)))


if __name__ == "__main__":
    main()
