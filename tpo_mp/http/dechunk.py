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
        if left < 0 and not self._in_trailer:
            at = _plain(data, parts)
        while at < size:
            if left < 0:
                eol = data.find(b"\r\n", at)
                if eol < 0:
                    self._carry = _half_line(data[at:])
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


def _plain(data: bytes, parts: list[bytes]) -> int:
    """Take the leading chunks in one go, if all whole ones are alike; answers how far that got.

    True for streams of events: no CRLF inside a chunk, sizes that were seen before.  Anything else
    is left to the byte-exact way.
    """
    pieces = data.split(b"\r\n")
    if len(pieces) < _WORTH:
        return 0
    # What follows the last whole chunk: part of a size line, or that line and part of its chunk.
    tail = pieces.pop() if len(pieces) % 2 else b"\r\n".join((pieces.pop(-2), pieces.pop()))
    if pieces[-2] == b"0":
        tail = b"\r\n".join((pieces.pop(-2), pieces.pop(), tail))
    bodies = pieces[1::2]
    if list(map(len, bodies)) != list(map(_SIZES.get, pieces[::2])):
        return 0
    if b"" in bodies:  # a last chunk that more follows
        return 0
    parts += bodies
    return len(data) - len(tail)


def _half_line(line: bytes) -> bytes:
    if len(line) > _MAX_LINE_BYTES:
        raise ChunkError("line too long")
    if b"\n" in line:
        raise ChunkError("bare line feed")
    return line


# Sizes repeat: a stream's chunks are nearly alike, so most lines were checked before.
_SIZES: dict[bytes, int] = {}
_MAX_SIZES = 4096
_WORTH = 7
"""Pieces between CRLFs, two a chunk, from which on one go is the faster way."""


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
