"""A directory of segment files as it lies on the disk: finding, reading, cutting and deleting.

::

    file    magic 8 bytes "TPOSEG1\\n", then records back to back
    record  as ``framing`` draws it; the payload is one msgpack value

A torn tail is possible only in the newest file: ``recover`` cuts it at the first bad record and
keeps the rest in ``NAME.corrupt``, so what is read is always a clean prefix.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .framing import HEAD_BYTES, walk

MAGIC = b"TPOSEG1\n"
_CORRUPT_FILES = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Caps of one log."""

    segment_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    age_s: float = 7 * 86400.0


class SegmentFiles:
    """One directory; who writes to it is not this class's affair."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cut_bytes = 0
        self._newest = 0
        self._sizes: dict[int, int] = {}

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes.values())

    @property
    def position(self) -> tuple[int, int]:
        """File number and offset where the next record would go."""
        return self._newest, self._sizes.get(self._newest, len(MAGIC))

    def segments(self) -> list[int]:
        """Numbers of the files, oldest first."""
        return sorted(self._sizes)

    def size_of(self, number: int) -> int:
        """Bytes of one file that hold whole records; 0 when there is none."""
        return self._sizes.get(number, 0)

    def path(self, number: int) -> Path:
        """Where a file lies."""
        return self._path(number)

    def read(self, place: Place) -> bytes | None:
        """One record's payload, or ``None`` when it is gone or damaged."""
        try:
            with self._path(place.segment).open("rb") as file:
                file.seek(place.offset)
                blob = file.read(HEAD_BYTES + place.length)
        except OSError:
            return None
        return next((payload for _, payload in walk(blob, 0)), None)

    def scan(self, segment: int = 0, offset: int = 0) -> Iterator[tuple[Place, bytes]]:
        """Every record from a position on, oldest first; damaged ends of files are skipped."""
        for number in self.segments():
            if number < segment:
                continue
            try:
                data = self._path(number).read_bytes()
            except OSError:
                continue
            if data[: len(MAGIC)] != MAGIC:
                continue
            start = max(offset, len(MAGIC)) if number == segment else len(MAGIC)
            for at, payload in walk(data, start):
                yield Place(number, at, len(payload)), payload

    def _load(self) -> None:
        """Make the directory if need be, and see what is there."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes = {n: self._path(n).stat().st_size for n in self._numbers()}
        self._newest = max(self._sizes, default=0)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.seg"

    def _numbers(self) -> list[int]:
        return [int(p.stem) for p in self.directory.glob("*.seg") if p.stem.isdigit()]

    def _recover(self, number: int) -> int:
        """Cut a torn tail off; answers how many bytes are good."""
        path = self._path(number)
        data = path.read_bytes()
        good = len(MAGIC) if data[: len(MAGIC)] == MAGIC else 0
        if good:
            for at, payload in walk(data):
                good = at + HEAD_BYTES + len(payload)
        if good < len(data):
            self.cut_bytes += len(data) - good
            with path.with_suffix(".corrupt").open("ab") as rest:
                rest.write(data[good:])
            os.truncate(path, good)
            self._sizes[number] = good
        return good

    def _prune(self, most_bytes: int, horizon: float) -> list[int]:
        """Delete the oldest files, but never the newest, until both caps hold."""
        gone: list[int] = []
        total = self.total_bytes
        for number in sorted(self._sizes):
            if number == self._newest:
                break
            path = self._path(number)
            with contextlib.suppress(OSError):
                if total <= most_bytes and path.stat().st_mtime >= horizon:
                    break
                path.unlink()
            total -= self._sizes.pop(number)
            gone.append(number)
        self._prune_corrupt(horizon)
        return gone

    def _prune_corrupt(self, horizon: float) -> None:
        found = sorted(self.directory.glob("*.corrupt"))
        for path in found[:-_CORRUPT_FILES]:
            path.unlink(missing_ok=True)
        for path in found[-_CORRUPT_FILES:]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < horizon:
                    path.unlink()
