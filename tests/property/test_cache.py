"""Several processes overwrite each other's cache while some are killed: never a wrong answer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial

from tests.support.effort import LONG
from tests.support.wait import wait_for
from tpo_mp.shm.cache import CacheSegment

SEATS = 3
WRITES = 500_000 if LONG else 6_000
"""Of each of two processes."""
KILLS = 50 if LONG else 4
KEPT = (64 + 2 * 64) // 8 + 3
"""Where the third seat counts what it kept."""


def start(segment: CacheSegment, seat: int, seed: int, writes: int) -> subprocess.Popen[str]:
    """Let a process write and check on a seat."""
    plan = {"cache_fd": segment.fd, "seat": seat, "seed": seed, "writes": writes}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.cache_child", json.dumps(plan)],
        pass_fds=[segment.fd], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def kept_more(segment: CacheSegment, enough: int) -> bool:
    """Whether the third seat kept so many."""
    kept: int = segment.words[KEPT]
    return kept >= enough


def test_nothing_wrong_is_ever_found(rng: random.Random) -> None:
    """A small cache goes round all the time, under readers and over the half-written of the dead.

    On two seats processes run to their end; those of the third are killed wherever they are.
    """
    segment = CacheSegment.create(SEATS, 128 << 10)
    seeds = iter(range(rng.randrange(1 << 30), 1 << 31))
    running = [start(segment, seat, next(seeds), WRITES) for seat in range(2)]
    lasting = running[:]
    try:
        for _ in range(KILLS):
            doomed = start(segment, 2, next(seeds), 1 << 40)
            running.append(doomed)
            enough = segment.words[KEPT] + rng.randrange(20, 800)
            more = partial(kept_more, segment, enough)
            wait_for(more, 600 if LONG else 10, "answers", every_s=0.001)
            doomed.kill()
            assert doomed.communicate()[0] == ""
        for process in lasting:
            said = process.communicate(timeout=3000 if LONG else 100)[0].split()
            assert said[0] == "found", said
            assert int(said[1]) > WRITES // 10
            print(f"{WRITES} written, {said[1]} found, none wrong")
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        segment.close()
