"""What the cache costs a call: the key of its body, and a lookup that finds something or nothing.

The cache of a host is filled with answers of one KiB; then keys that nobody kept, and keys that
somebody kept, are looked for by themselves.  Prints one row as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from hashlib import blake2b

from tpo_mp.pipeline.fingerprint import KEY_BYTES, Match, fingerprint
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable
from tpo_mp.types import Call

from .payload import Payload

ANSWERS, LOOKUPS = 10_000, 100_000
LOG_BYTES = 32 << 20
TTL_S = 3600.0
SURE = {"temperature": 0}


def key_of(number: int) -> bytes:
    """A key as good as a call's."""
    return blake2b(b"%d" % number, digest_size=KEY_BYTES).digest()


def main() -> None:
    """Measure once."""
    segment, table = CacheSegment.create(2, LOG_BYTES), RowTable.create(8)
    cache = SharedCache(segment, table, seat=0, clock=time.monotonic)
    for number in range(ANSWERS):
        cache.keep(key_of(number), b"a" * 1024, TTL_S, cache.generation)
    known = [key_of(number) for number in range(ANSWERS)]
    unknown = [key_of(number) for number in range(-LOOKUPS, 0)]
    bodies = [Payload("lookups", extra=SURE).body(number) for number in range(10_000)]
    row = {
        "miss_us": _each_us(cache.find, unknown),
        "hit_us": _each_us(cache.find, known * (LOOKUPS // ANSWERS)),
        "key_us": _each_us(_key, bodies),
        "found": sum(cache.find(key) is not None for key in known) / ANSWERS,
    }
    segment.close()
    table.close()
    print(json.dumps(row))


def _key(body: bytes) -> None:
    call = Call(id="", model="echo", body=body, stream=False, started_at=0.0)
    if fingerprint(call, Match.DETERMINISTIC) is None:
        raise ValueError("this body has no key")


def _each_us(do: Callable[[bytes], object], given: list[bytes]) -> float:
    """Processor time for each, the loop's own taken off."""
    began = time.process_time()
    for one in given:
        do(one)
    taken_s = time.process_time() - began
    began = time.process_time()
    for _ in given:
        pass
    return 1e6 * (taken_s - (time.process_time() - began)) / len(given)


if __name__ == "__main__":
    main()
