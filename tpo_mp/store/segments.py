"""Append-only, checksummed, size-capped segment files.

One log is a directory of files ``00000001.seg``, ``00000002.seg``, …; only the newest is written.

::

    file    magic 8 bytes "TPOSEG1\\n", then records back to back
    record  as ``framing`` draws it; the payload is one msgpack value

A batch is one ``write()``.  A torn tail is possible only in the newest file: opening cuts
it at the first bad record and keeps the rest in ``NAME.corrupt``, so what is read is always a clean
prefix.

Durability is named as in Redis: ``no`` never syncs, ``everysec`` syncs on ``sync()``, ``always``
syncs in every ``append``.  After a failed write or sync the file is bad: it is cut back to its last
good size, the next append starts a new file, and ``SegmentError.lost`` hands every record that is
no longer safe back to the caller.  A failed fsync is never retried as a success.

Invariants: a record is in the log at most once; the directory stays within its byte and age caps
(the newest file excepted).
Weakness: bodies are not encrypted; the files are mode 0600.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from .framing import HEAD_BYTES, flush_to_disk, framed, sync_directory, walk

Durability: TypeAlias = Literal["no", "everysec", "always"]

MAGIC = b"TPOSEG1\n"
_UNSYNCED_CAP = 8 << 20
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


class SegmentError(Exception):
    """A write or sync failed; ``lost`` are the payloads that are not in the log any more."""

    def __init__(self, cause: OSError, lost: list[bytes]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.lost = lost


class SegmentLog:
    """One log; used by one thread of one process."""

    def __init__(
        self,
        directory: Path,
        limits: LogLimits,
        durability: Durability = "everysec",
        *,
        clock: Callable[[], float] = time.time,
        write: Callable[[int, bytes], int] = os.write,
        fsync: Callable[[int], None] = flush_to_disk,
    ) -> None:
        """Open the log and cut a torn tail.

        A directory that cannot be used yet is tried again by every ``append``.
        """
        self.directory = directory
        self.limits = limits
        self.durability: Durability = durability
        self.write_errors = 0
        self.cut_bytes = 0
        self._clock = clock
        self._write = write
        self._fsync = fsync
        self._fd = -1
        self._size = 0
        self._synced = 0
        self._unsynced: list[bytes] = []
        self._unsynced_bytes = 0
        self._opened = False
        self._newest = 0
        self._sizes: dict[int, int] = {}
        try:
            self._open()
        except OSError:
            self.write_errors += 1

    # -- writing ------------------------------------------------------------------------------

    def append(self, payloads: Sequence[bytes]) -> list[Place]:
        """Write a batch with one ``write()``; raises ``SegmentError``."""
        if not payloads:
            return []
        batch = list(payloads)
        assert all(batch), "an empty payload would end the log"
        try:
            self._open()
            if self._fd < 0 or self._size >= self.limits.segment_bytes:
                self._rotate()
            places, blob = self._layout(batch)
            written = self._write(self._fd, blob)
            if written != len(blob):
                raise OSError(errno.ENOSPC, f"short write: {written} of {len(blob)} bytes")
        except SegmentError as failed:
            raise SegmentError(failed.cause, failed.lost + batch) from failed
        except OSError as error:
            raise self._give_up(error, batch) from error
        self._size += len(blob)
        self._sizes[self._newest] = self._size
        if self.durability != "no":
            self._unsynced += batch
            self._unsynced_bytes += len(blob)
            if self.durability == "always" or self._unsynced_bytes > _UNSYNCED_CAP:
                self.sync()
        return places

    def sync(self) -> None:
        """Make everything appended so far durable; raises ``SegmentError``."""
        if self._fd < 0 or self._synced == self._size or self.durability == "no":
            return
        try:
            self._fsync(self._fd)
        except OSError as error:
            raise self._give_up(error, [], may_sync=False) from error
        self._mark_synced()

    def prune(self) -> list[int]:
        """Delete the oldest files until the caps hold; answers their numbers."""
        gone: list[int] = []
        horizon = self._clock() - self.limits.age_s
        total = self.total_bytes
        for number in sorted(self._sizes):
            if number == self._newest:
                break
            path = self._path(number)
            with contextlib.suppress(OSError):
                if total <= self.limits.total_bytes and path.stat().st_mtime >= horizon:
                    break
                path.unlink()
            total -= self._sizes.pop(number)
            gone.append(number)
        self._prune_corrupt(horizon)
        return gone

    def close(self) -> None:
        """Sync and close; raises ``SegmentError``."""
        try:
            self.sync()
        finally:
            self._close_file()

    # -- reading ------------------------------------------------------------------------------

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

    # -- inside -------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._opened:
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes = {n: self._path(n).stat().st_size for n in self._numbers()}
        self._newest = max(self._sizes, default=0)
        if self._newest:
            self._recover(self._newest)
        self._opened = True

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.seg"

    def _numbers(self) -> list[int]:
        return [int(p.stem) for p in self.directory.glob("*.seg") if p.stem.isdigit()]

    def _layout(self, batch: list[bytes]) -> tuple[list[Place], bytes]:
        places: list[Place] = []
        parts: list[bytes] = []
        at = self._size
        for payload in batch:
            length = len(payload)
            places.append(Place(self._newest, at, length))
            parts += framed(payload)
            at += HEAD_BYTES + length
        return places, b"".join(parts)

    def _rotate(self) -> None:
        if self._fd >= 0:
            self.sync()
            self._close_file()
        number = self._newest + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path(number), flags, 0o600)
        self._fd, self._newest = fd, number
        self._size = self._synced = 0
        self._sizes[number] = 0
        if self._write(fd, MAGIC) != len(MAGIC):
            raise OSError(errno.ENOSPC, "no room for a new segment")
        self._size = self._synced = self._sizes[number] = len(MAGIC)
        if self.durability != "no":
            sync_directory(self.directory)

    def _mark_synced(self) -> None:
        self._synced = self._size
        self._unsynced = []
        self._unsynced_bytes = 0

    def _give_up(
        self, error: OSError, batch: list[bytes], *, may_sync: bool = True
    ) -> SegmentError:
        """Stop using the file: cut it to what is safe and hand the rest back."""
        self.write_errors += 1
        fd = self._fd
        lost: list[bytes] = []
        if fd >= 0:
            keep = self._size
            with contextlib.suppress(OSError):
                os.ftruncate(fd, keep)
            if not (may_sync and self._still_syncs(fd)):
                keep, lost = self._synced, self._unsynced
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, keep)
            self._sizes[self._newest] = keep
            if keep <= len(MAGIC):
                self._drop_empty()
        self._mark_synced()
        self._close_file()
        return SegmentError(error, lost + batch)

    def _drop_empty(self) -> None:
        """Retries on a full disk must not litter the directory."""
        self._path(self._newest).unlink(missing_ok=True)
        self._sizes.pop(self._newest, None)

    def _still_syncs(self, fd: int) -> bool:
        if self.durability == "no":
            return True
        try:
            self._fsync(fd)
        except OSError:
            return False
        return True

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _recover(self, number: int) -> None:
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
        if good >= len(MAGIC) and good < self.limits.segment_bytes:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._size = self._synced = good

    def _prune_corrupt(self, horizon: float) -> None:
        found = sorted(self.directory.glob("*.corrupt"))
        for path in found[:-_CORRUPT_FILES]:
            path.unlink(missing_ok=True)
        for path in found[-_CORRUPT_FILES:]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < horizon:
                    path.unlink()
