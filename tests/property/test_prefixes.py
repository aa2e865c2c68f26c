"""Several processes use one prefix index while some are killed: it never names what nobody said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial

from tests.support.effort import LONG
from tests.support.prefix_child import BACKENDS
from tests.support.wait import wait_for
from tpo_mp.shm.prefixes import PrefixSegment, SharedPrefixes
from tpo_mp.shm.rows import RowTable

ROUNDS = 500_000 if LONG else 15_000
KILLS = 100 if LONG else 5


def _changed(segment: PrefixSegment, before: bytes, writer: subprocess.Popen[str]) -> bool:
    return bytes(segment.map) != before or writer.poll() is not None


def test_no_lookup_finds_what_nobody_recorded(rng: random.Random) -> None:
    """Two run to their end, others are killed wherever they are; then all is found still."""
    segment, rows = PrefixSegment.create(), RowTable.create(8)
    fds = {"prefixes_fd": segment.fd, "rows_fd": rows.fd, "locks_fd": rows.locks_fd}
    running: list[subprocess.Popen[str]] = []

    def start(rounds: int) -> subprocess.Popen[str]:
        plan = fds | {"rows": 8, "rounds": rounds, "seed": rng.randrange(1 << 30)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.prefix_child", json.dumps(plan)],
            pass_fds=list(fds.values()), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    try:
        lasting = [start(ROUNDS) for _ in range(2)]
        for _ in range(KILLS):
            before = bytes(segment.map)
            doomed = start(1 << 40)
            wait_for(partial(_changed, segment, before, doomed), 30, "something to be written")
            doomed.kill()
            assert doomed.communicate()[0] == ""
        for process in lasting:
            said = process.communicate(timeout=3000 if LONG else 100)[0].split()
            assert said[0] == "found", said
            assert int(said[1]) > ROUNDS // 2
        index = SharedPrefixes(segment, rows)
        numbers = {index.number(f"backend-{n}") for n in range(BACKENDS)}
        assert numbers == set(range(1, BACKENDS + 1))
    finally:
        for process in running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        segment.close()
        rows.close()
