"""Undo chunked transfer coding, strictly, over arbitrarily cut reads.

Chunk extensions are dropped (bounded with their line), trailers are read and dropped.

Invariants: ``feed`` returns exactly the body bytes in order; after ``done`` it takes no more and
``rest`` holds what followed the body; anything outside the grammar of RFC 9112 §7.1 raises, except
blanks behind a size, which old servers pad it with.
"""

from __future__ import annotations

_MAX_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 16384
_HEX = frozenset(b"0123456789abcdefABCDEF")
_CONTROL = frozenset(range(32)) - {9} | {127}


class ChunkError(Exception):
    """The peer broke the chunked framing."""


class Dechunker:
    """One body's decoder."""

    __slots__ = ("_carry", "_in_trailer", "_left", "_trailer_bytes", "done", "rest")

    def __init__(self) -> None:
        self._carry = b""
        self._left = (
            -1
        )  # bytes of the current chunk still to come, its CRLF included; -1: size line
        self._in_trailer = False
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Body parts found in ``data``."""
        parts: list[bytes] = []
        if self._carry:
            data = self._carry + data
            self._carry = b""
        at, size = 0, len(data)
        left = self._left
        while at < size:
            if left < 0:
                eol = data.find(b"\r\n", at)
                if eol < 0:
                    if size - at > _MAX_LINE_BYTES:
                        raise ChunkError("line too long")
                    if data.find(b"\n", at) >= 0:
                        raise ChunkError("bare line feed")
                    self._carry = data[at:]
                    break
                if self._in_trailer:
                    at = self._trailer(data, at, eol)
                    if self.done:
                        return parts
                    continue
                line = data[at:eol]
                length = _SIZES.get(line, -1)
                if length < 0:
                    length = _size(line)
                at = eol + 2
                if length == 0:
                    self._in_trailer = True
                    continue
                left = length + 2
            have = size - at
            if have >= left:
                end = at + left - 2
                if left > 2:
                    parts.append(data[at:end])
                if data[end : end + 2] != b"\r\n":
                    raise ChunkError("chunk does not end in CRLF")
                at += left
                left = -1
            else:
                if left > 2:
                    body = min(have, left - 2)
                    parts.append(data[at : at + body])
                    left -= body
                    at += body
                if at < size:  # a lone CR of the closing CRLF: wait for its LF
                    self._carry = data[at:]
                break
        self._left = left
        return parts

    def _trailer(self, data: bytes, at: int, eol: int) -> int:
        if eol == at:
            self.done = True
            self.rest = data[eol + 2 :]
        elif data.find(b":", at, eol) <= at or not _CONTROL.isdisjoint(data[at:eol]):
            raise ChunkError("malformed trailer")
        self._trailer_bytes += eol - at + 2
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise ChunkError("trailers too long")
        return eol + 2


# Sizes repeat: a stream's chunks are nearly alike, so most lines were checked before.
_SIZES: dict[bytes, int] = {}
_MAX_SIZES = 4096


def _size(line: bytes) -> int:
    digits, _, extension = line.partition(b";")
    digits = digits.rstrip(b" \t")
    if not digits or len(digits) > 8 or not _HEX.issuperset(digits) or len(line) > _MAX_LINE_BYTES:
        raise ChunkError("invalid chunk size")
    if extension and not _CONTROL.isdisjoint(extension):
        raise ChunkError("control character in a chunk extension")
    size = int(digits, 16)
    if not extension and len(_SIZES) < _MAX_SIZES:
        _SIZES[line] = size
    return size
