"""How late a real client gets the tokens of ``tpo-mp simulate``, against the schedule it knows.

The same client as in ``tpo-mp simulate selfcheck``, at the same low load.
Prints one row as JSON: ``arrival_p99_ms`` over all the tokens of ``arrival_streams`` streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from tpo_mp.commands.simulate_selfcheck import MODEL, simulator
from tpo_mp.simulator.accuracy import quantile_of
from tpo_mp.simulator.arrivals import Asking, measure
from tpo_mp.simulator.presets import PRESETS
from tpo_mp.simulator.profiles import ProfileSchedule

PRESET = "fast@design"
STREAMS = 1_000
AT_ONCE = 10
TOKENS = 12


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(prog="benchmarks.arriving", description=__doc__)
    parser.add_argument("--secs", type=float, default=4.0, help="shorter than two: a tenth of it")
    streams = STREAMS if parser.parse_args().secs >= 2 else STREAMS // 10
    schedule = ProfileSchedule(PRESETS[PRESET].profile)
    with simulator(PRESET, TOKENS) as (host, port):
        asking = Asking(host, port, MODEL, schedule, TOKENS, streams, AT_ONCE)
        seen = asyncio.run(measure(asking))
    lags = sorted(seen.lags)
    row = {
        "arrival_p50_ms": round(quantile_of(lags, 0.5), 3),
        "arrival_p99_ms": round(quantile_of(lags, 0.99), 3),
        "arrival_streams": len(seen.first),
        "failed": seen.failed,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
