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
from itertools import count
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
from tpo_mp.ports import BackendConfig, Env, Journal, Live, Store
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.ledger import LEDGER_ROWS, SharedLedger
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.quotas import QUOTAS_REFUSED, QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.shares import SharedShares, ShareSegment
from tpo_mp.types import Call, Reply, Terminal, Usage

_ASKED: Final[dict[str, Any]] = {
    "model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "x" * 180}]
}  # fmt: skip
BODY: Final = json.dumps(_ASKED).encode()
_SURE: Final = json.dumps(_ASKED | {"temperature": 0}).encode()
_ANSWER: Final = json.dumps(
    {"id": "chatcmpl-123456789", "object": "chat.completion", "created": 1767225600, "model": "m",
     "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 20},
                  "logprobs": None, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}}
).encode()  # fmt: skip
_FAR: Final = 100_000_000
_WINDOWS: Final = {"rps": _FAR, "rpm": _FAR, "rph": _FAR}
_NEAR: Final = {"rps": _FAR, "rpm": _FAR, "rph": _FAR, "burst": 1000}


def _as_ever() -> Callable[[], bytes]:
    """Calls whose answer is not certain, as most are."""
    return lambda: BODY


def _afresh() -> Callable[[], bytes]:
    """Calls that are certain to get the same answer, and each another than all before."""
    numbers = count(1 << 40)
    head, tail = _SURE.split(b"xxxxxxxxxxxx", 1)
    return lambda: b"%b%d%b" % (head, next(numbers), tail)


def _again() -> Callable[[], bytes]:
    """Calls that are all the same."""
    return lambda: _SURE


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table; ``stages`` from the outermost to the innermost, with their options."""

    title: str
    stages: dict[str, dict[str, Any]]
    bodies: Callable[[], Callable[[], bytes]] = _as_ever


CASES: Final = {
    "limit_one": Case("`rate_limit`, one level", {"rate_limit": {"global": {"rps": _FAR}}}),
    "limit_four": Case(
        "`rate_limit`, four levels of three windows",
        {"rate_limit": dict.fromkeys(("session", "tenant", "model", "global"), _WINDOWS)},
    ),
    "limit_all": Case(
        "the same with tokens and calls at once",
        {"rate_limit": dict.fromkeys(
            ("session", "tenant", "model", "global"),
            _WINDOWS | {"tpm": 1_000_000_000, "concurrent": _FAR},
        )},
    ),
    "limit_near": Case(
        "`rate_limit`, one level near its limit", {"rate_limit": {"global": _NEAR}}
    ),
    "breaker": Case("`breaker`, all well", {"breaker": {}}),
    "budget_two": Case(
        "`token_budget`, two levels",
        {"token_budget": {"global": {"hour": 10**12}, "tenant": {"hour": 10**12}}},
    ),
    "retry": Case("`retry`", {"retry": {}}),
    "admission": Case("`admission`, a backend of 64 places, free", {"admission": {}}),
    "timeout": Case("`timeout`, learnt", {"timeout": {}}),
    "idempotency": Case("`idempotency`, calls without a key", {"idempotency": {}}),
    "guard": Case("`guard`, nothing found", {"guard": {}}),
    "cache_none": Case("`cache`, an answer that is not certain", {"cache": {}}),
    "cache_miss": Case("`cache`, not found, and kept", {"cache": {}}, _afresh),
    "cache_hit": Case("`cache`, found", {"cache": {}}, _again),
    "dedup_none": Case("`dedup`, an answer that is not certain", {"dedup": {}}),
    "dedup_alone": Case("`dedup`, nobody else asks the same", {"dedup": {}}, _afresh),
    "shared_miss": Case("`cache` and `dedup`, a miss of both", {"cache": {}, "dedup": {}}, _afresh),
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
        cache=SharedCache(CacheSegment.create(1, 64 << 20), rows, seat=0, clock=time.monotonic),
        prices=Prices(),
    )


def _core(_call: Call) -> Awaitable[Reply]:
    out: Promise[Reply] = Promise()
    out.resolve(Reply(200, _ANSWER))
    return out


def call_us(
    serve: Callable[[Call], Awaitable[Reply]],
    wheel: Wheel,
    secs: float,
    body: Callable[[], bytes],
) -> float:
    """CPU microseconds a call takes."""
    ended = ending(Terminal.DONE, Usage(50, 20), None, 1)
    number, turn_at = 0, 0.0
    began, end = time.process_time(), time.monotonic() + secs
    while (now := time.monotonic()) < end:
        if now >= turn_at:
            wheel.tick(now)
            turn_at = now + GRAIN_S
        for _ in range(100):
            call = Call(id="", model="m", body=body(), stream=False, started_at=now)
            call.tenant, call.tier, call.session, call.backend = "t", "standard", "s", "b"
            serve(call)
            if call.endings is not None:
                tell_ended(call, ended)
        number += 100
    return (time.process_time() - began) / number * 1e6


def measure(secs: float) -> dict[str, float]:
    """All cases, for ``secs`` in all, each beside the calls without it."""
    secs /= len(CASES)
    row: dict[str, float] = {}
    for name, case in CASES.items():
        wheel = Wheel()
        env = environment(wheel)
        stages = []
        for stage, options in case.stages.items():
            feature = registry.find("stages", stage)
            built = feature.build(msgspec.convert(options, feature.Config), env)
            if hasattr(built, "meet"):
                built.meet([BackendConfig(name="b", kind="echo", max_concurrent=64)])
            stages.append(built)
        spent = call_us(fold(stages, _core), wheel, secs, case.bodies())
        spent -= call_us(fold([], _core), wheel, secs / 2, case.bodies())
        row[f"{name}_us"] = round(spent, 2)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.stages", description=__doc__)
    parser.add_argument("--secs", type=float, default=10.0)
    print(json.dumps(measure(parser.parse_args().secs)))


if __name__ == "__main__":
    main()
