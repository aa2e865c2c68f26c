"""What the store writes of a request, sealed with a key of the operator's (AES-256-GCM).

::

    sealed   C1 01 · mark of the key 4 bytes · nonce 12 bytes · ciphertext with its tag

C1 begins neither UTF-8 nor msgpack, so what was written before there was a key is told from what
is sealed, and stays readable.  ``about`` (whose call it is) is authenticated with it: what is moved
to another call's place does not open there.

The first key seals, all of them open: a new one is put in front, and the old one goes when what it
sealed is too old to matter.  Each is stretched by HKDF, so that the secret may serve elsewhere.

Invariants: what is sealed never leaves here as something else than it was; what no key opens is
``Locked``, never taken for text.
Known weakness: nonces are random, so a key should seal fewer than 2^32 bodies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FIRST: Final = b"\xc1\x01"
MARK_BYTES: Final = 4
NONCE_BYTES: Final = 12
_HEAD: Final = len(FIRST) + MARK_BYTES + NONCE_BYTES
SEAL_BYTES: Final = _HEAD + 16
"""By how much a seal lengthens what it holds."""
_INFO: Final = b"tpo-mp store"


class Locked(Exception):
    """It is sealed with a key that is not here, or was changed since."""


class Seals:
    """The keys of one configuration; without any, nothing is sealed."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        """Derive the keys; the first of ``secrets`` seals."""
        self._secrets = tuple(secrets)
        self._keys: dict[bytes, AESGCM] = {}
        self._mark = b""
        for secret in secrets:
            mark, cipher = _derived(secret)
            self._mark = self._mark or mark
            self._keys.setdefault(mark, cipher)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seals) and self._secrets == other._secrets

    def __hash__(self) -> int:
        return hash(self._secrets)

    @property
    def marks(self) -> str:
        """Which keys these are, and nothing of them; in no order."""
        return " ".join(sorted(mark.hex() for mark in self._keys))

    def seal(self, plain: bytes, about: bytes) -> bytes:
        """Seal with the first key; without one it stays as it is."""
        if not self._keys:
            return plain
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._keys[self._mark].encrypt(nonce, plain, about)
        return b"".join((FIRST, self._mark, nonce, sealed))

    def open(self, found: bytes, about: bytes) -> bytes:
        """What was sealed, or what was written without a seal; raises ``Locked``."""
        if not is_sealed(found):
            return found
        cipher = self._keys.get(_mark_of(found))
        if cipher is None:
            raise Locked("none of the keys sealed this")
        from cryptography.exceptions import InvalidTag

        try:
            return cipher.decrypt(found[_HEAD - NONCE_BYTES : _HEAD], found[_HEAD:], about)
        except InvalidTag:
            raise Locked("it was changed, or is not what it is taken for") from None

    def has_key_of(self, found: bytes) -> bool:
        """Whether there is a key for this, as far as can be told without opening it."""
        return not is_sealed(found) or _mark_of(found) in self._keys


UNSEALED: Final = Seals()


def is_sealed(found: bytes) -> bool:
    """Whether these bytes were sealed."""
    return found[: len(FIRST)] == FIRST and len(found) > _HEAD


def _mark_of(found: bytes) -> bytes:
    return found[len(FIRST) : len(FIRST) + MARK_BYTES]


def _derived(secret: str) -> tuple[bytes, AESGCM]:
    """The mark by which a key is known, and the key."""
    # Loaded where it is configured only.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    made = HKDF(SHA256(), 32 + MARK_BYTES, None, _INFO).derive(secret.encode())
    return made[32:], AESGCM(made[:32])
