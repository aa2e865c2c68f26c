"""One of several processes that claim names: ``python -m tests.support.claims_child PLAN``.

Whoever leads a name writes itself into that name's word of a witness, finds itself there for a
while, and takes itself out before it gives the name back.  It says ``two NAME`` when another was
there, unless that one is dead.
"""

from __future__ import annotations

import json
import random
import sys
from hashlib import blake2b

from tpo_mp.shm.claims import NOBODY, ClaimSegment, SharedClaims
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment

NAMES = 6
SEATS = 3
WITNESS_BYTES = 8 * (SEATS + NAMES)
"""First the epoch of each seat, then who leads each name."""


def name_of(number: int) -> bytes:
    """A name; all of them are in one set."""
    return b"\0\0" + blake2b(number.to_bytes(8, "little"), digest_size=14).digest()


def main() -> None:
    """Run one process."""
    plan = json.loads(sys.argv[1])
    rng, seat, epoch = random.Random(plan["seed"]), plan["seat"], plan["epoch"]
    words = Segment.attach(plan["witness_fd"], WITNESS_BYTES).words
    claims = SharedClaims(
        ClaimSegment.attach(plan["claims_fd"]),
        RowTable.attach(plan["rows_fd"], plan["locks_fd"], plan["rows"]),
        seat=seat, epoch=epoch, serves=lambda other, of: words[other] == of,
    )  # fmt: skip
    me, led, followed = seat << 32 | epoch, 0, 0
    for _ in range(plan["rounds"]):
        number = rng.randrange(NAMES)
        name, at = name_of(number), SEATS + number
        leader = claims.leader(name)
        if leader != seat:
            followed += leader != NOBODY
            continue
        there = words[at]
        if there and words[there >> 32] == there & 0xFFFFFFFF:
            print("two", number, there >> 32, seat, flush=True)
            return
        words[at] = me
        if any(words[at] != me for _ in range(rng.randrange(40))):
            print("two", number, words[at] >> 32, seat, flush=True)
            return
        words[at] = 0
        led += 1
        claims.release(name)
    print("led", led, followed, flush=True)


if __name__ == "__main__":
    main()
