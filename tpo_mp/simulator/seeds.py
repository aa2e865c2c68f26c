"""Where randomness comes from: one stream per request, told by the seed and the request itself.

The same request under the same seed draws the same numbers, in every process and on every host.
How a reply is delivered (``stream``, its options) and who asks (``user``, ``metadata``) are no part
of the request.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random
from typing import Any, Final

import orjson

_NOT_THE_REQUEST: Final = ("stream", "stream_options", "user", "metadata", "store",
                           "prompt_cache_key", "safety_identifier")  # fmt: skip


def key_of(seed: int, asked: dict[str, Any]) -> bytes:
    """The key of a request: equal requests have equal keys."""
    told = {name: value for name, value in asked.items() if name not in _NOT_THE_REQUEST}
    digest = blake2b(digest_size=16, key=seed.to_bytes(8, "big"))
    digest.update(orjson.dumps(told, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))
    return digest.digest()


def key_of_bytes(seed: int, body: bytes) -> bytes:
    """The key of a request that is only told apart by its bytes."""
    return blake2b(body, digest_size=16, key=seed.to_bytes(8, "big")).digest()


def stream_of(key: bytes, *what: int | str) -> Random:
    """The random stream of one part of a reply (its second choice, say)."""
    told = b"\0".join(str(part).encode() for part in what)
    return Random(blake2b(told, digest_size=16, key=key).digest())  # noqa: S311 - texts
