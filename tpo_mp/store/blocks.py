"""Reads a log from its end backwards, a bounded piece at a time.

A file is cut into blocks of whole records, found by hopping from head to head once; a block is
then read by itself.  Nothing is kept on disk: what is known of a file is rebuilt from it.

Invariants: a block is never read while its file is shorter than what was known of it (it was cut);
damage costs the rest of its block and nothing more.
Weakness: hopping through a file that was never looked at reads all of it, once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .framing import HEAD_BYTES, MAX_RECORD, walk
from .segment_files import MAGIC, SegmentFiles

BLOCK_BYTES: Final = 128 << 10
_READ_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Known:
    """What is known of one file: where its blocks begin, and how far it was read."""

    starts: array[int] = field(default_factory=lambda: array("Q"))
    end: int = len(MAGIC)


@dataclass(frozen=True, slots=True)
class Block:
    """Some records of one file, from ``start`` to ``end``; ``closed``: none will be added."""

    segment: int
    start: int
    end: int
    closed: bool


class BlockReader:
    """The blocks of one log; used by the log's thread."""

    def __init__(self, files: SegmentFiles, block_bytes: int = BLOCK_BYTES) -> None:
        self._files = files
        self._block_bytes = block_bytes
        self._known: dict[int, _Known] = {}

    def backwards(self, segment: int | None = None, before: int | None = None) -> Iterator[Block]:
        """Blocks from the newest to the oldest; of ``segment`` on, those that begin before."""
        numbers = self._files.segments()
        for gone in self._known.keys() - set(numbers):
            del self._known[gone]
        for number in reversed(numbers):
            if segment is not None and number > segment:
                continue
            known = self._looked_at(number)
            last = number == numbers[-1]
            for n in range(len(known.starts) - 1, -1, -1):
                start, newest = known.starts[n], n == len(known.starts) - 1
                if number == segment and before is not None and start >= before:
                    continue
                end = known.end if newest else known.starts[n + 1]
                yield Block(number, start, end, closed=not (last and newest))

    def read(self, block: Block) -> bytes:
        """A block's bytes; empty when its file is gone."""
        try:
            with self._files.path(block.segment).open("rb") as file:
                file.seek(block.start)
                return file.read(block.end - block.start)
        except OSError:
            return b""

    def records(self, block: Block, data: bytes) -> list[tuple[int, bytes]]:
        """Offsets and payloads of a block's records, oldest first."""
        return [(block.start + at, payload) for at, payload in walk(data, 0)]

    def _looked_at(self, number: int) -> _Known:
        size = self._files.size_of(number)
        known = self._known.get(number)
        if known is None or known.end > size:
            known = self._known[number] = _Known()
        if known.end < size:
            _hop(self._files.path(number), known, size, self._block_bytes)
        return known


def _hop(path: Path, known: _Known, size: int, block_bytes: int) -> None:
    """Find the blocks up to ``size``, from head to head."""
    try:
        with path.open("rb") as file:
            at, base, window = known.end, known.end, b""
            while at + HEAD_BYTES <= size:
                here = at - base
                if here + HEAD_BYTES > len(window):
                    file.seek(at)
                    base, here, window = at, 0, file.read(_READ_BYTES)
                    if len(window) < HEAD_BYTES:
                        return
                length = int.from_bytes(window[here : here + 4], "little")
                end = at + HEAD_BYTES + length
                if not 0 < length <= MAX_RECORD or end > size:
                    return
                if not known.starts or at - known.starts[-1] >= block_bytes:
                    known.starts.append(at)
                at = known.end = end
    except OSError:
        return
