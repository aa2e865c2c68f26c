"""The beginning of a prompt as a chain of digests, each over all that comes before it.

A prompt begins where the body's first conversation key does (``messages``, ``system``, ``tools``,
``prompt``, ``input``, ``contents``) within the first ``LOOKED``
bytes, else where the body does, and is taken as the bytes that the client sent: those of a
conversation that goes on begin as they did before.  Blocks are of 1 KiB, at most ``MOST`` of them;
what is left beyond the last whole block is not looked at, so a shorter prompt has none.

A chain begins with tenant and model: an engine's cache serves neither across models nor, where it
is told to keep tenants apart, across those.

Invariants: the same bytes make the same digests in every process and after every restart.
Known weakness: a client that writes the same conversation otherwise (other blanks, keys in another
order) makes another prompt of it.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

from tpo_mp.types import Call

MOST: Final = 64
BLOCK: Final = 1024
LOOKED: Final = 1 << 15
"""A search through a large body would hold the loop for as long as somebody likes."""
_BEGINS: Final = re.compile(rb'"(?:messages|system|tools|prompt|input|contents)"\s*:')
_DIGEST: Final = 8


def blocks_of(call: Call) -> list[bytes]:
    """The digests of a call's blocks, the first one first; none of a short prompt."""
    body = call.body
    found = _BEGINS.search(body, 0, LOOKED)
    start = found.start() if found else 0
    count = min((len(body) - start) // BLOCK, MOST)
    if not count:
        return []
    chain = _beginning(call.tenant, call.model).copy()
    update, digest, digests = chain.update, chain.digest, []
    for at in range(start, start + count * BLOCK, BLOCK):
        update(body[at : at + BLOCK])
        digests.append(digest()[:_DIGEST])
    return digests


@lru_cache(maxsize=1024)
def _beginning(tenant: str, model: str) -> hashlib._Hash:
    return hashlib.sha256(f"{tenant}\0{model}\0".encode("utf-8", "surrogatepass"))
