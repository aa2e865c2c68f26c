"""What a prefix route looks up: hashing a prompt's blocks, and finding them among 100 000 others.

Prints one row as JSON, and on stderr the two figures beside what they must not exceed.  Figures are
of CPU, and the lookup's of a prompt of which a part is known, which takes the longest.  What is
looked up was made just before, as a route's digests are; the index is as cold as it happens to be.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from tpo_mp.pipeline.prompt_blocks import MOST, blocks_of
from tpo_mp.shm.prefixes import PrefixSegment, SharedPrefixes
from tpo_mp.shm.rows import RowTable
from tpo_mp.types import Call

BLOCKS = 100_000
HASHED_GATE_US = 2.0
LOOKUP_GATE_US = 5.0
PROMPT_KIB = 16
BACKENDS = 8
_BATCH = 500
_FRESH = 50
"""Prompts looked up at a time: their digests fit into a core's second cache."""


def measure(secs: float) -> dict[str, float]:
    """Hash and look up, each again and again for a third of ``secs``."""
    rng = random.Random(1)
    segment, rows = PrefixSegment.create(), RowTable.create(8)
    try:
        index = SharedPrefixes(segment, rows)
        known = [_chain(rng, MOST) for _ in range(BLOCKS // MOST + 1)]
        for number, blocks in enumerate(known):
            index.record(blocks, index.number(f"backend-{number % BACKENDS}"))
        cut = [rng.randrange(1, MOST) for _ in known]
        partly = [blocks[:n] + _chain(rng, MOST - n) for blocks, n in zip(known, cut, strict=True)]
        found = sum(index.find(blocks)[0] == n for blocks, n in zip(partly, cut, strict=True))
        text = rng.randbytes(PROMPT_KIB * 512).hex()
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
        call = Call(id="1", model="m", body=body, stream=False, started_at=0.0)
        hashed = _cpu_us(lambda _: blocks_of(call), secs / 3)
        return {
            "blocks": len(known) * MOST,
            "recall": found / len(known),
            "hash_us_per_kib": hashed / PROMPT_KIB,
            "lookup_us": _lookup_us(index, partly, secs / 3),
            "record_us": _cpu_us(lambda n: index.record(known[n % len(known)], 1, MOST), secs / 3),
        }
    finally:
        segment.close()
        rows.close()


def _chain(rng: random.Random, length: int) -> list[bytes]:
    chain = sha256(rng.randbytes(16))
    blocks = []
    for _ in range(length):
        chain.update(b"block")
        blocks.append(chain.digest()[:8])
    return blocks


def _lookup_us(index: SharedPrefixes, prompts: Sequence[list[bytes]], secs: float) -> float:
    """The median CPU time of one lookup, in batches of digests that were just made."""
    until, took, first = time.monotonic() + secs, list[float](), 0
    find = index.find
    while not took or time.monotonic() < until:
        batch = [[bytes(bytearray(b)) for b in p] for p in prompts[first : first + _FRESH]]
        began = time.process_time()
        for blocks in batch:
            find(blocks)
        took.append((time.process_time() - began) / len(batch) * 1e6)
        first = (first + _FRESH) % len(prompts)
    return sorted(took)[len(took) // 2]


def _cpu_us(work: Callable[[int], object], secs: float) -> float:
    """The median CPU time of one call, in batches."""
    until, took = time.monotonic() + secs, list[float]()
    while not took or time.monotonic() < until:
        began = time.process_time()
        first = len(took) * _BATCH
        for number in range(first, first + _BATCH):
            work(number)
        took.append((time.process_time() - began) / _BATCH * 1e6)
    return sorted(took)[len(took) // 2]


def judged(row: dict[str, float]) -> Sequence[str]:
    """The two figures beside their gates."""
    lines = []
    for name, unit, gate in (("hash_us_per_kib", "µs/KiB hashed", HASHED_GATE_US),
                             ("lookup_us", "µs/lookup", LOOKUP_GATE_US)):  # fmt: skip
        verdict = "met" if row[name] <= gate else "not met"
        lines.append(f"{row[name]:.2f} {unit} (≤ {gate:g}): {verdict}")
    return lines


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=3.0)
    row = measure(parser.parse_args().secs)
    print(json.dumps(row))
    print("\n".join(judged(row)), file=sys.stderr)


if __name__ == "__main__":
    main()
