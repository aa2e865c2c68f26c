"""One of several processes that keep and find: ``python -m tests.support.cache_child PLAN``.

It writes and reads at random until it is killed or has written enough, checks every answer it
finds, and says ``wrong N`` at the first one that is not what somebody kept under that key.
"""

from __future__ import annotations

import json
import random
import sys
from hashlib import blake2b
from time import monotonic

from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable

KEYS = 500
TTL_S = 0.2


def answer_of(key: bytes, number: int, length: int) -> bytes:
    """An answer that proves whose it is, and that it is whole."""
    seed = blake2b(key + number.to_bytes(8, "little"), digest_size=32).digest()
    body = (seed * (length // 32 + 1))[:length]
    return key + number.to_bytes(8, "little") + length.to_bytes(8, "little") + body


def is_right(key: bytes, answer: bytes) -> bool:
    """Whether it is one that somebody kept under this key."""
    number, length = (int.from_bytes(answer[at : at + 8], "little") for at in (16, 24))
    return answer == answer_of(key, number, length)


def main() -> None:
    """Run one process."""
    plan = json.loads(sys.argv[1])
    rng = random.Random(plan["seed"])
    cache = SharedCache(
        CacheSegment.attach(plan["cache_fd"]), RowTable.create(8), seat=plan["seat"],
        clock=monotonic,
    )  # fmt: skip
    keys = [blake2b(n.to_bytes(8, "little"), digest_size=16).digest() for n in range(KEYS)]
    found = 0
    for number in range(plan["writes"]):
        key = rng.choice(keys)
        length = rng.choice((0, 10, 100, 1000, rng.randrange(cache.most - 32)))
        cache.keep(key, answer_of(key, number, length), TTL_S, cache.generation)
        for _ in range(3):
            key = rng.choice(keys)
            answer = cache.find(key)
            if answer is not None:
                found += 1
                if not is_right(key, answer):
                    print("wrong", number, flush=True)
                    return
    print("found", found, flush=True)


if __name__ == "__main__":
    main()
