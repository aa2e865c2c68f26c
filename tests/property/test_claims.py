"""Several processes claim the same names while some are killed: never do two lead one."""

from __future__ import annotations

import json
import random
import subprocess
import sys

from tests.support.claims_child import SEATS, WITNESS_BYTES
from tests.support.effort import LONG
from tests.support.wait import wait_for
from tpo_mp.shm.claims import ClaimSegment
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment

ROUNDS = 2_000_000 if LONG else 40_000
KILLS = 100 if LONG else 6


def test_no_two_living_processes_lead_one_name(rng: random.Random) -> None:
    """Two run to their end, and a third is killed wherever it is, its claims with it."""
    claims, rows = ClaimSegment.create(), RowTable.create(8)
    witness = Segment.create("witness", WITNESS_BYTES)
    fds = {
        "claims_fd": claims.fd, "rows_fd": rows.fd, "locks_fd": rows.locks_fd,
        "witness_fd": witness.fd,
    }  # fmt: skip
    running: list[subprocess.Popen[str]] = []

    def start(seat: int, rounds: int) -> subprocess.Popen[str]:
        witness.words[seat] += 1
        plan = fds | {
            "rows": 8, "seat": seat, "epoch": witness.words[seat], "rounds": rounds,
            "seed": rng.randrange(1 << 30),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.claims_child", json.dumps(plan)],
            pass_fds=list(fds.values()), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    try:
        lasting = [start(seat, ROUNDS) for seat in range(2)]
        for _ in range(KILLS):
            doomed = start(2, 1 << 40)
            wait_for(
                lambda: any(word >> 32 == 2 for word in witness.words[SEATS:]),
                30, "a name it leads", every_s=0.0,
            )  # fmt: skip
            doomed.kill()
            assert doomed.communicate()[0] == ""
            witness.words[2] += 1  # its claims are over from here on
        for process in lasting:
            said = process.communicate(timeout=3000 if LONG else 100)[0].split()
            assert said[0] == "led", said
            assert int(said[1]) > ROUNDS // 20
    finally:
        for process in running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for part in (claims, rows, witness):
            part.close()
