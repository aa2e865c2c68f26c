"""One of several users of one prefix index: ``python -m tests.support.prefix_child PLAN``.

Chain ``n`` is only ever recorded at backend ``n % BACKENDS``.  It says ``wrong …`` when a lookup
names another, or more blocks than the chain has in common with what was recorded.
"""

from __future__ import annotations

import json
import random
import sys
from hashlib import sha256

from tpo_mp.shm.prefixes import PrefixSegment, SharedPrefixes
from tpo_mp.shm.rows import RowTable

CHAINS = 200
BACKENDS = 5
LONGEST = 20


def chain(number: int, length: int, salt: str = "") -> list[bytes]:
    """The digests of a chain; those with another salt are never recorded."""
    hashed = sha256(f"{number}{salt}".encode())
    made = []
    for _ in range(length):
        hashed.update(b"block")
        made.append(hashed.digest()[:8])
    return made


def main() -> None:
    """Run one process."""
    plan = json.loads(sys.argv[1])
    rng = random.Random(plan["seed"])
    index = SharedPrefixes(
        PrefixSegment.attach(plan["prefixes_fd"]),
        RowTable.attach(plan["rows_fd"], plan["locks_fd"], plan["rows"]),
    )
    found = 0
    for _ in range(plan["rounds"]):
        number = rng.randrange(CHAINS)
        mine = index.number(f"backend-{number % BACKENDS}")
        length = rng.randrange(1, LONGEST)
        blocks = chain(number, length) + chain(number, rng.randrange(5), "never")
        known, holders = index.find(blocks)
        if known > length or holders not in ((), (mine,)):
            print("wrong", number, known, length, holders, mine, flush=True)
            return
        found += known > 0
        index.record(blocks[:length], mine, known)
    print("found", found, flush=True)


if __name__ == "__main__":
    main()
