"""What an engine writes: kept in two files of bounded size, and shown while it loads.

``DIR/engine-NAME.log`` grows to its limit and then becomes ``engine-NAME.log.1``, in place of the
one before.  Lines about our own questions are
left out.  Until the engine is ready its lines go to standard error too, as ``engine-NAME | …``:
that is where the progress of a load is seen.  Bars that redraw themselves are a line once a second.

Invariants: a disk that is full or a terminal nobody reads costs lines, never time; the end of what
was said is remembered, to tell why an engine ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import deque
from pathlib import Path
from typing import BinaryIO

from .events import write_line

MAX_LINE = 2000
KEPT_LINES = 40
BAR_S = 1.0
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SPLIT = re.compile(rb"\r\n|\n|\r")


class EngineLog:
    """Takes an engine's bytes and makes lines of them."""

    def __init__(self, folder: Path, name: str, limit_bytes: int, unsaid: str = "") -> None:
        self._unsaid = unsaid
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self.aloud = True
        self._name = name
        self._path = log_path(folder, name)
        self._limit = limit_bytes
        self._rest = b""
        self._bar_at = float("-inf")
        self._file: BinaryIO | None = None
        self._size = 0
        self._open()

    def feed(self, data: bytes, now: float) -> None:
        """Take what was read from the engine; empty: it wrote its last."""
        text = self._rest + data
        start = 0
        for end in _SPLIT.finditer(text):
            if end.group() == b"\r" and end.end() == len(text) and data:
                break  # perhaps the first half of CR LF
            self._line(text[start : end.start()], now, bar=end.group() == b"\r")
            start = end.end()
        self._rest = text[start:]
        if not data or len(self._rest) > MAX_LINE:
            self._line(self._rest, now, bar=False)
            self._rest = b""

    def say(self, line: str) -> None:
        """Add a line of our own."""
        self._write(line)
        if self.aloud:
            write_line(sys.stderr, f"engine-{self._name} | {line}")

    def last_line(self) -> str:
        """The last thing it said that has a letter in it."""
        return next((line for line in reversed(self.tail) if any(map(str.isalpha, line))), "")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _line(self, raw: bytes, now: float, *, bar: bool) -> None:
        line = _COLOURS.sub("", raw.decode(errors="replace")).rstrip()[:MAX_LINE]
        if not line or (self._unsaid and self._unsaid in line):
            return
        if bar:
            if now - self._bar_at < BAR_S:
                return
            self._bar_at = now
        self.tail.append(line)
        self.say(line)

    def _write(self, line: str) -> None:
        data = line.encode(errors="replace") + b"\n"
        try:
            if self._file is None or self._size + len(data) > self._limit:
                self._turn_over()
            if self._file is not None:
                self._file.write(data)
                self._size += len(data)
        except OSError:
            self.close()

    def _turn_over(self) -> None:
        self.close()
        if self._size:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._open()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(fd, "ab", buffering=0)
            self._size = os.fstat(fd).st_size


def log_path(folder: Path, name: str) -> Path:
    """Where an engine's lines are kept."""
    return folder / f"engine-{name}.log"
