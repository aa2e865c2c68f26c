"""Do the books agree: client successes, requests the upstream saw, and call records on disk.

A gateway is started for this alone, gets a fixed number of requests, and is drained; only then
are its records counted, in the files themselves.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tpo_mp.store.framing import walk

from .bench import Bench
from .load import Shape
from .plan import Phase

COUNTED = 2000


def miscounted(bench: Bench, name: str) -> int:
    """Answer by how many calls the three counts differ from what was sent, added up."""
    before = bench.upstream.stats()["requests"]
    with bench.place.start(name) as live:
        assert live.process is not None
        shape = Shape(bench.options.conns, extra=live.extra)
        seen = bench.load.phases(live.url, shape, [Phase(secs=60, count=COUNTED)])[0]
        live.process.stop()
        recorded = records(live.state)
    arrived = bench.upstream.stats()["requests"] - before
    counts = (arrived, recorded, seen.requests - seen.non2xx)
    return sum(abs(count - COUNTED) for count in counts)


def records(state: Path) -> int:
    """Count the call records under a state directory."""
    files = (path.read_bytes() for path in sorted(state.rglob("calls/*.seg")))
    batches = (batch for data in files for _, batch in walk(data))
    return sum(len(msgspec.msgpack.decode(batch)) for batch in batches)
