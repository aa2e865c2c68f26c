"""The store's disk with failpoints in it; used only while some are armed."""

from __future__ import annotations

import os

from tpo_mp.shm import failpoints
from tpo_mp.store.framing import Disk, flush_to_disk


def faulty_disk() -> Disk:
    """A disk with ``dlq.half`` inside every write and ``dlq.before_fsync`` in front of every sync.

    The action ``drop`` makes them a short write and a failed sync.
    """
    return Disk(_write, _fsync)


def _write(fd: int, blob: bytes) -> int:
    half = len(blob) // 2
    done = os.write(fd, blob[:half])
    if failpoints.hit("dlq.half"):
        return done
    return done + os.write(fd, blob[half:])


def _fsync(fd: int) -> None:
    if failpoints.hit("dlq.before_fsync"):
        raise OSError("failpoint dlq.before_fsync")
    flush_to_disk(fd)
