"""Append-only, checksummed, size-capped segment files.

One log is a directory of files ``00000001.seg``, ``00000002.seg``, …; only the newest is written.
A batch is one ``write()``; ``segment_files`` draws the files and says how a torn tail is cut.

Durability is named as in Redis: ``no`` never syncs, ``everysec`` syncs on ``sync()``, ``always``
syncs in every ``append``.  After a failed write or sync the file is bad: it is cut back to its last
good size, the next append starts a new file, and ``SegmentError.lost`` hands every record that is
no longer safe back to the caller.  A failed fsync is never retried as a success.

Invariants: a record is in the log at most once; the directory stays within its byte and age caps
(the newest file excepted).
The files are mode 0600; who appends decides whether what they hold is sealed (``sealing``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from .framing import HEAD_BYTES, flush_to_disk, framed, sync_directory
from .segment_files import MAGIC, LogLimits, Place, SegmentFiles

Durability: TypeAlias = Literal["no", "everysec", "always"]

_UNSYNCED_CAP = 8 << 20


class SegmentError(Exception):
    """A write or sync failed; ``lost`` are the payloads that are not in the log any more."""

    def __init__(self, cause: OSError, lost: list[bytes]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.lost = lost


class SegmentLog(SegmentFiles):
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
        super().__init__(directory)
        self.limits = limits
        self.durability: Durability = durability
        self.write_errors = 0
        self._clock = clock
        self._write = write
        self._fsync = fsync
        self._fd = -1
        self._size = 0
        self._synced = 0
        self._unsynced: list[bytes] = []
        self._unsynced_bytes = 0
        self._opened = False
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
        return self._prune(self.limits.total_bytes, self._clock() - self.limits.age_s)

    def close(self) -> None:
        """Sync and close; raises ``SegmentError``."""
        try:
            self.sync()
        finally:
            self._close_file()

    # -- inside -------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._opened:
            return
        self._load()
        if self._newest:
            good = self._recover(self._newest)
            if len(MAGIC) <= good < self.limits.segment_bytes:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path(self._newest), flags)
                self._size = self._synced = good
        self._opened = True

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
