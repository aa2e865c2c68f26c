"""API keys of ours: what a new one looks like, and the digest a key is kept as.

A key is ``tpo_<id>_<32 characters>_<crc32 of all before>``: secret scanners find it, and a copy
that lost a character is known without asking anybody.  Any other secret is accepted as well.

The digest is HMAC-SHA-256 under the operator's pepper.  Keys are long and random, so a slow hash
would protect nothing.
"""

from __future__ import annotations

import hmac
import secrets
import string
from hashlib import sha256
from typing import Final
from zlib import crc32

PREFIX: Final = "tpo_"
SECRET_CHARACTERS: Final = 32
_ALPHABET: Final = string.ascii_letters + string.digits


def new_key(key_id: str) -> str:
    """Make a key of 190 random bits for ``key_id``."""
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARACTERS))
    text = f"{PREFIX}{key_id}_{secret}"
    return f"{text}_{crc32(text.encode()):08x}"


def is_damaged(key: str) -> bool:
    """Whether a key looks like one of ``new_key``'s, but not as it was made."""
    text, _, check = key.rpartition("_")
    if not text.startswith(PREFIX) or "_" not in text[len(PREFIX) :]:
        return False
    return check != f"{crc32(text.encode()):08x}"


def digest(secret: bytes, pepper: bytes) -> bytes:
    """The 32 bytes a key is kept as."""
    return hmac.digest(pepper, secret, sha256)
