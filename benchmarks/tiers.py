"""How long a lookup in Redis keeps a call: while it is well, holds its answers back, and is dead.

Starts a redis-server of its own on a socket, looks up answers that nobody kept, one after the
other, and prints one row as JSON; the bound is ``[distributed] cache_wait_s``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from statistics import quantiles

import uvloop

from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.store.answer_tier import RedisTier
from tpo_mp.types import TierResult

WAIT_S = 0.005
READY_S = 10.0
STATES = ("well", "holding back", "dead")
_PAUSE_MS = 600_000


async def measure(state: str, lookups: int) -> dict[str, float]:
    """Look up so often in a state; raises ``FileNotFoundError`` without a redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="tpo-tier-") as home:
        socket = Path(home) / "s"
        argv = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", home]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        results: Counter[TierResult] = Counter()
        tier = RedisTier(
            f"unix://{socket}", wait_s=WAIT_S, most=1 << 16, random=Random(1),
            metrics=MetricsArena.create(1).block(0, 1), count=lambda r: results.update([r]),
            warn=lambda *_a, **_k: None,
        )  # fmt: skip
        try:
            async with asyncio.timeout(READY_S):
                while not (tier.up and tier.generation):
                    await asyncio.sleep(0.01)
            if state == "holding back":
                client = ["redis-cli", "-s", str(socket), "client", "pause", str(_PAUSE_MS)]
                subprocess.run(client, check=True, stdout=subprocess.DEVNULL)
            elif state == "dead":
                server.kill()
                server.wait()
            waits = [await _wait_s(tier, str(n)) for n in range(lookups)]
        finally:
            tier.close()
            server.kill()
            server.wait()
            await asyncio.sleep(0.05)
    cuts = quantiles(waits, n=1000)
    return {
        "lookups": lookups,
        "asked": lookups - results[TierResult.SKIPPED],
        "p50_ms": round(cuts[499] * 1e3, 3),
        "p99_ms": round(cuts[989] * 1e3, 3),
        "max_ms": round(max(waits) * 1e3, 3),
    }


async def _wait_s(tier: RedisTier, name: str) -> float:
    await asyncio.sleep(0.001)  # calls come, and the link looks whether Redis is back
    told = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    tier.find(name.encode().ljust(16)[:16], b"whose", lambda _found: told.set_result(None))
    await told
    return time.perf_counter() - began


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", choices=STATES, default=STATES[0])
    parser.add_argument("--lookups", type=int, default=2000)
    options = parser.parse_args()
    try:
        row = uvloop.run(measure(options.state, options.lookups))
    except FileNotFoundError as e:
        print(e, file=sys.stderr)
        return 1
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
