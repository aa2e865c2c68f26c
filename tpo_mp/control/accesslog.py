"""Writes access lines, on a thread of its own, because standard output may block for ever.

Invariants: at most ``MAX_QUEUED`` batches wait; more are dropped from the access log (never from
the call records) and counted.  A file is closed, renamed to ``NAME.1`` and begun anew at
``MAX_FILE_BYTES``, and reopened when something else has renamed it.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from tpo_mp.observe.access import Form, render
from tpo_mp.shm.frames import RecordFrame

MAX_QUEUED = 256
MAX_FILE_BYTES = 256 << 20

_decode = msgspec.msgpack.Decoder(list[RecordFrame]).decode


class AccessLog:
    """Off until ``configure`` names a place: ``off``, ``stdout`` or a file."""

    def __init__(self) -> None:
        self._crowded = 0
        self._unwritten = [0]
        self._where = "off"
        self._form: Form = "text"
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Batches that are missing: too many waited, or the place did not take them."""
        return self._crowded + self._unwritten[0]

    def configure(self, where: str, form: Form) -> None:
        """Write to another place, or in another form, from now on."""
        if (where, form) == (self._where, self._form):
            return
        self.close(timeout_s=0.2)
        self._where, self._form = where, form
        if where == "off":
            return
        self._queue = SimpleQueue()
        self._thread = threading.Thread(
            target=_write_all,
            args=(self._queue, where, form, self._unwritten),
            name="access-log",
            daemon=True,
        )
        self._thread.start()

    def offer(self, batch: bytes) -> None:
        """Queue one batch of call records; an empty one is none."""
        if self._thread is None or not batch:
            return
        if self._queue.qsize() >= MAX_QUEUED:
            self._crowded += 1
        else:
            self._queue.put(batch)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, if that is possible in time."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)


class _Out:
    """An append-only descriptor: standard output, or a file with a size cap."""

    def __init__(self, where: str) -> None:
        self._path = None if where == "stdout" else Path(where)
        self._fd = 1 if self._path is None else -1

    def write(self, lines: bytes) -> None:
        if self._path is not None:
            self._ready(self._path)
        view = memoryview(lines)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ready(self, path: Path) -> None:
        self._open(path)
        mine = os.fstat(self._fd)
        if mine.st_size >= MAX_FILE_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        try:
            same = os.path.samestat(path.stat(), mine)
        except FileNotFoundError:
            same = False
        if not same:
            self.close()
            self._open(path)

    def _open(self, path: Path) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)


def _write_all(
    queue: SimpleQueue[bytes | None], where: str, form: Form, unwritten: list[int]
) -> None:
    """``unwritten`` counts batches; only the thread of the latest place writes it."""
    out = _Out(where)
    running = True
    while running:
        batches = [queue.get()]
        with suppress(Empty):
            while True:
                batches.append(queue.get_nowait())
        running = None not in batches
        lines = b"".join(_lines(batch, form) for batch in batches if batch is not None)
        try:
            out.write(lines)
        except OSError:  # a full disk or a closed pipe costs access lines, nothing else
            unwritten[0] += sum(batch is not None for batch in batches)
    out.close()


def _lines(batch: bytes, form: Form) -> bytes:
    try:
        records = _decode(batch)
    except msgspec.MsgspecError:
        return b""
    return b"".join(render(record, form) for record in records)
