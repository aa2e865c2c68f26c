"""Compression of answers: which coding a client gets, whole answers, and streams event by event.

A coding is chosen by the client's weights; of equally welcome ones by ours: ``br`` where the
``brotli`` package is installed (the extra of that name), then ``gzip``, then ``deflate``, which is
what RFC 9110 calls so, zlib's format.

Invariants: bodies that already have a coding are never touched; whatever was written to a packer
can be read by the client before the next write; a whole body takes less than a millisecond on the
loop up to ``INLINE_BYTES``, larger ones go to a thread; equal bodies make equal bytes.
Known weakness: compressing secrets beside text a stranger chose lets the stranger guess them by
length (BREACH), which is one reason why this is off by default.  A stream keeps 30 to 60 KB.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

INLINE_BYTES = 65_536
LEVEL = 1
_TYPES = (b"application/json", b"application/x-ndjson", b"application/openmetrics-text", b"text/")
_GZIP = 16  # zlib's flag beside the window
_WINDOW = 15
# The hundreds of bytes that repeat in a stream are its last events: a small window finds them.
_STREAM_WINDOW = 12
_STREAM_MEMORY = 5
_BROTLI_WHOLE = 1
_BROTLI_STREAM = 2  # the least that finds again what was flushed before


class Packer(Protocol):
    """Compresses one stream."""

    def part(self, data: bytes) -> bytes:
        """What to send so that the client can read ``data`` now."""

    def end(self) -> bytes:
        """What ends the stream."""


@dataclass(frozen=True, slots=True)
class Coding:
    """A content coding: ``line`` says it in a head, ``squeeze`` compresses a whole body."""

    name: bytes
    line: bytes
    squeeze: Callable[[bytes], bytes]
    packer: Callable[[], Packer]


class _ZlibPacker:
    __slots__ = ("_zlib",)

    def __init__(self, format: int) -> None:
        self._zlib = zlib.compressobj(LEVEL, zlib.DEFLATED, format + _STREAM_WINDOW, _STREAM_MEMORY)

    def part(self, data: bytes) -> bytes:
        return self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._zlib.flush()


def _zlib_coding(name: bytes, format: int) -> Coding:
    return Coding(
        name,
        b"content-encoding: %b\r\n" % name,
        lambda body: zlib.compress(body, LEVEL, wbits=format + _WINDOW),
        lambda: _ZlibPacker(format),
    )


GZIP = _zlib_coding(b"gzip", _GZIP)
DEFLATE = _zlib_coding(b"deflate", 0)


@cache
def codings() -> tuple[Coding, ...]:
    """What this installation can send, best first."""
    try:
        import brotli
    except ImportError:
        return GZIP, DEFLATE

    class BrotliPacker:
        __slots__ = ("_brotli",)

        def __init__(self) -> None:
            self._brotli = brotli.Compressor(quality=_BROTLI_STREAM, lgwin=_STREAM_WINDOW)

        def part(self, data: bytes) -> bytes:
            packed: bytes = self._brotli.process(data) + self._brotli.flush()
            return packed

        def end(self) -> bytes:
            rest: bytes = self._brotli.finish()
            return rest

    def squeeze(body: bytes) -> bytes:
        packed: bytes = brotli.compress(body, quality=_BROTLI_WHOLE)
        return packed

    return Coding(b"br", b"content-encoding: br\r\n", squeeze, BrotliPacker), GZIP, DEFLATE


def chosen(accept_encoding: bytes) -> Coding | None:
    """The coding that a client likes best, by its q-values (RFC 9110 §12.5.3).

    None: it asked for none that we have, or prefers to have it plain.
    """
    weights: dict[bytes, float] = {}
    for part in accept_encoding.lower().split(b","):
        name, *params = (piece.strip() for piece in part.split(b";"))
        weights[name.removeprefix(b"x-")] = _weight(params)
    others = weights.get(b"*", 0.0)
    best: Coding | None = None
    most = 0.0
    for coding in codings():
        weight = weights.get(coding.name, others)
        if weight > most:
            best, most = coding, weight
    return best if most >= weights.get(b"identity", 0.0) else None


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
