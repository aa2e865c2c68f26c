"""Who asks: known keys, and a key's short name for records.

Invariants: a key is compared and told by its hash only.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b, sha256

from tpo_mp.config.values import Secret
from tpo_mp.types import Call

NAME_CHARACTERS = 12


def key_of(authorization: bytes | None) -> bytes:
    """The key in an ``authorization`` header; empty when there is none."""
    scheme, _, key = (authorization or b"").strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else scheme


def hashed_caller(call: Call) -> str:
    """Who is counted: the key, or the address of a caller without one."""
    who = key_of(call.authorization) or call.peer.encode()
    return blake2b(who, digest_size=16).hexdigest()


def key_name(authorization: bytes | None) -> str:
    """A key's name for people: the beginning of its hash, empty for no key."""
    key = key_of(authorization)
    return sha256(key).hexdigest()[:NAME_CHARACTERS] if key else ""


class KnownKeys:
    """The keys a simulator accepts; others do not exist."""

    def __init__(self, keys: Iterable[Secret]) -> None:
        self._hashes = {sha256(key.reveal().encode()).digest() for key in keys}

    def knows(self, authorization: bytes | None) -> bool:
        """Whether the caller's key is one of them."""
        return sha256(key_of(authorization)).digest() in self._hashes
