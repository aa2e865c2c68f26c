"""Compression of whole answers: what is worth it, who asked for it, and the gzip itself.

Invariants: streams and bodies that already have a coding are never touched; ``squeeze`` on the
loop takes less than a millisecond for ``INLINE_BYTES``, larger bodies go to a thread.
Known weakness: compressing secrets beside text a stranger chose lets the stranger guess them by
length (BREACH), which is one reason why this is off by default.
"""

from __future__ import annotations

import zlib

INLINE_BYTES = 65_536
LEVEL = 1
GZIP_LINE = b"content-encoding: gzip\r\n"
_TYPES = (b"application/json", b"application/x-ndjson", b"application/openmetrics-text", b"text/")
_GZIP_WINDOW = 31


def accepts_gzip(accept_encoding: bytes) -> bool:
    """Whether a client prefers gzip, by its q-values (RFC 9110 §12.5.3)."""
    weights: dict[bytes, float] = {}
    for part in accept_encoding.lower().split(b","):
        coding, *params = (piece.strip() for piece in part.split(b";"))
        weights[coding] = _weight(params)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    return gzip > 0 and gzip >= weights.get(b"identity", 0.0)


def _weight(params: list[bytes]) -> float:
    for param in params:
        name, _, value = param.partition(b"=")
        if name.strip() == b"q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0 <= weight <= 1 else 0.0
    return 1.0


def worthwhile(content_type: bytes, extra: bytes) -> bool:
    """Whether a body of that type shrinks, and has no coding yet."""
    return content_type.startswith(_TYPES) and b"content-encoding:" not in extra


def squeeze(body: bytes) -> bytes:
    """Compress as gzip, without a time stamp: equal bodies make equal bytes."""
    return zlib.compress(body, LEVEL, wbits=_GZIP_WINDOW)
