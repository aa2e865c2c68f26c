"""How records lie in a file, and how a file gets to the disk.

::

    file    magic 8 bytes, then records back to back
    record  length u32 · crc32 u32 (of the payload) · payload (length bytes)

A reader stops at the first that is cut or damaged, so what it reads is
always a clean prefix.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEAD = struct.Struct("<II")
HEAD_BYTES = _HEAD.size
MAGIC_BYTES = 8
MAX_RECORD = 64 << 20
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)


def flush_to_disk(fd: int) -> None:
    """Sync a descriptor as far as the platform can (macOS needs F_FULLFSYNC)."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fsync(fd)


def sync_directory(directory: Path) -> None:
    """Make new, renamed and removed names durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Disk:
    """The two system calls that a test or a failpoint may replace."""

    write: Callable[[int, bytes], int] = os.write
    fsync: Callable[[int], None] = flush_to_disk


def framed(payload: bytes) -> tuple[bytes, bytes]:
    """Head and payload of one record."""
    return _HEAD.pack(len(payload), zlib.crc32(payload)), payload


def walk(data: bytes | memoryview, start: int = MAGIC_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield ``(offset, payload)`` of each whole, intact record; stops at the first that is not."""
    size = len(data)
    at = start
    while at + HEAD_BYTES <= size:
        length, crc = _HEAD.unpack_from(data, at)
        end = at + HEAD_BYTES + length
        if not 0 < length <= MAX_RECORD or end > size:
            return
        payload = bytes(data[at + HEAD_BYTES : end])
        if zlib.crc32(payload) != crc:
            return
        yield at, payload
        at = end


def read_record(file: BinaryIO) -> bytes | None:
    """The payload of the record at the file's position; ``None`` when none is whole and intact."""
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    length, crc = _HEAD.unpack(head)
    if not 0 < length <= MAX_RECORD:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == crc else None
