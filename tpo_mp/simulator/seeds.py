"""Where randomness comes from: one stream per request, told by the seed and the request itself.

The same request under the same seed draws the same numbers, in every process and on every host;
what a repeated request draws is told by how often the host saw it before (see ``Occurrences``).
How a reply is delivered (``stream``, its options) and who asks (``user``, ``metadata``) are no part
of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any, Final, Literal, TypeAlias

import orjson

from tpo_mp.types import Call

Repeats: TypeAlias = Literal["same_text", "vary", "same"]
KEY_HEADER: Final = b"x-sim-key:"

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
    # A number seeds the generator in half the time that bytes take.
    seed = int.from_bytes(blake2b(told, digest_size=16, key=key).digest(), "big")
    return Random(seed)  # noqa: S311 - texts


class Occurrences:
    """The keys of a request's random streams: of what is said, and of when and whether.

    A request that comes again on this host is another occurrence: ``same_text`` says the same and
    draws its timing and its faults anew, ``vary`` says something else too, ``same`` repeats all.
    The n-th occurrence draws the same numbers whatever worker it meets, and the first one those of
    ``same``.  With ``X-Sim-Key`` nothing is counted: the word alone decides.
    """

    __slots__ = ("_count", "_repeats")

    def __init__(self, repeats: Repeats, count: Callable[[str], int]) -> None:
        """``count`` numbers the events of a name on this host."""
        self._repeats = repeats
        self._count = count

    def text(self, call: Call, key: bytes) -> bytes:
        """The key of what is said."""
        return self._occurring(call, key) if self._repeats == "vary" else key

    def chance(self, call: Call, key: bytes) -> bytes:
        """The key of timing and faults."""
        return key if self._repeats == "same" else self._occurring(call, key)

    def _occurring(self, call: Call, key: bytes) -> bytes:
        if KEY_HEADER in call.forward:
            return key
        if not call.seen:
            call.seen = self._count(f"seen:{key.hex()}")
        if call.seen == 1:
            return key
        return blake2b(call.seen.to_bytes(8, "big"), digest_size=16, key=key).digest()
