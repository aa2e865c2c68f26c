"""The file that holds a copy of the calls open now: what is left of them after power is lost.

::

    file     magic 8 bytes "TPOOPEN1", then records as ``framing`` draws them; a record is one
             msgpack array whose first element says which:
    1 mark   segment, offset    the log of call records, as it was before the registry was looked at
    2 open   place, call id, flags, meta, body
    3 over   places             nothing is open there any more

A place of the registry holds one call at a time: a later ``open`` replaces an earlier one.  What is
open at the end of the clean prefix was open at the last sync; what the log of call records has
after the last ``mark`` has finished since.

``replace`` writes a new file beside the old one, syncs it, renames it over the old one and syncs
the directory; ``append`` adds to it and syncs.  Killed between any two system calls, the name leads
to the old file, the new one, or a file with a torn tail.  After a failed write or sync the file is
bad: it is never appended to again, only replaced.

Invariants: one thread of one process writes it; mode 0600.
A body may be sealed (``sealing``); then the record says so, and is about its call's id.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from .framing import HEAD_BYTES, MAGIC_BYTES, Disk, framed, read_record, sync_directory
from .sealing import UNSEALED, Locked, Seals

MAGIC = b"TPOOPEN1"
CHUNK_BYTES = 1 << 20
DRAFT = ".new"
assert len(MAGIC) == MAGIC_BYTES


class CopyMark(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Call records before this position had been written when the registry was looked at."""

    segment: int
    offset: int


class CopiedCall(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """One open call, as the registry had it."""

    place: int
    call_id: bytes
    flags: int
    meta: bytes
    body: bytes
    sealed: bool = False


class CallsOver(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """Calls that are finished."""

    places: list[int]


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CopyMark | CopiedCall | CallsOver).decode


class OpenCopy:
    """The writer's side; every method may raise ``OSError``, after which only ``replace`` helps."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self.size = 0
        self._draft = path.with_name(path.name + DRAFT)
        self._disk = disk or Disk()
        self._fd = -1

    @property
    def usable(self) -> bool:
        """Whether there is a file that can be appended to."""
        return self._fd >= 0

    @property
    def absent(self) -> bool:
        """Whether there is no file at all."""
        return not self.usable and not self.path.exists()

    def append(self, payloads: Iterable[bytes]) -> None:
        """Add records and make them durable."""
        assert self.usable
        try:
            self.size += self._write(self._fd, payloads)
            self._disk.fsync(self._fd)
        except OSError:
            self.close()
            raise

    def replace(self, payloads: Iterable[bytes]) -> None:
        """Begin again with these records alone."""
        self.close()
        draft = self._draft
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o600)
        try:
            size = len(MAGIC) + self._write(fd, payloads, MAGIC)
            self._disk.fsync(fd)
            draft.rename(self.path)
            sync_directory(self.path.parent)
        except OSError:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
        self._fd, self.size = fd, size

    def remove(self) -> None:
        """Leave nothing behind."""
        self.close()
        for path in (self.path, self._draft):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop writing; the file stays."""
        fd, self._fd = self._fd, -1
        self.size = 0
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _write(self, fd: int, payloads: Iterable[bytes], first: bytes = b"") -> int:
        """Write in chunks, so that many large bodies are never in memory together."""
        chunk, held, total = [first], len(first), 0
        for payload in payloads:
            chunk += framed(payload)
            held += HEAD_BYTES + len(payload)
            if held >= CHUNK_BYTES:
                total += self._flush(fd, chunk)
                chunk, held = [], 0
        return total + self._flush(fd, chunk) - len(first)

    def _flush(self, fd: int, chunk: list[bytes]) -> int:
        blob = b"".join(chunk)
        if self._disk.write(fd, blob) != len(blob):
            raise OSError(errno.ENOSPC, "short write")
        return len(blob)


class OpenCopyReader:
    """What an earlier run's file still tells, read once from front to back.

    Only places and positions are kept in memory; ``calls`` reads the bodies again, one at a time.
    """

    def __init__(self, path: Path, seals: Seals = UNSEALED) -> None:
        """Read the clean prefix; raises ``OSError``, ``Locked`` when it needs another key."""
        self.path = path
        self._seals = seals
        self.mark: tuple[int, int] | None = None
        self._at: dict[int, int] = {}
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                self._read(file)

    def __len__(self) -> int:
        return len(self._at)

    def calls(self) -> Iterator[CopiedCall]:
        """The calls that were open at the end, and were not dropped since."""
        with self.path.open("rb") as file:
            for at in list(self._at.values()):
                file.seek(at)
                record = _next(file)
                if isinstance(record, CopiedCall):
                    yield self._opened(record)

    def drop(self, place: int) -> None:
        """Forget the call at a place."""
        self._at.pop(place, None)

    def _opened(self, call: CopiedCall) -> CopiedCall:
        """The call with its body; one that was changed since stays sealed."""
        if not call.sealed:
            return call
        try:
            return replace(call, body=self._seals.open(call.body, call.call_id), sealed=False)
        except Locked:
            return call

    def _read(self, file: BinaryIO) -> None:
        locked: set[int] = set()
        while True:
            at = file.tell()
            record = _next(file)
            if record is None:
                if locked & self._at.keys():
                    raise Locked("calls are sealed with another key")
                return
            if isinstance(record, CopyMark):
                self.mark = record.segment, record.offset
            elif isinstance(record, CopiedCall):
                self._at[record.place] = at
                locked.discard(record.place)
                if record.sealed and not self._seals.has_key_of(record.body):
                    locked.add(record.place)
            else:
                for place in record.places:
                    self._at.pop(place, None)


def _next(file: BinaryIO) -> CopyMark | CopiedCall | CallsOver | None:
    payload = read_record(file)
    try:
        return None if payload is None else _decode(payload)
    except msgspec.MsgspecError:
        return None
