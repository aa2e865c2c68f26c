"""Rare-event lines of the supervisor on standard error, one per event.

The lines look like those of the other processes (``observe.log``), whose library is too heavy here.

Invariants: a reader that stopped reading costs lines, never time: a line is written only when the
pipe has room for it.  The ready line goes to standard output through the same door.
"""

from __future__ import annotations

import json
import select
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO, TypeAlias, get_args

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["pretty", "json"]
Value: TypeAlias = str | int | float | bool | None

LEVELS: tuple[Level, ...] = get_args(Level)
MAX_LINE_BYTES = 4000
"""Below PIPE_BUF, so that a writable pipe takes the whole line."""


class EventLog:
    """Writes events in the configured format."""

    def __init__(
        self, log_format: Format = "pretty", least: Level = "info", stream: TextIO | None = None
    ) -> None:
        self.log_format: Format = log_format
        self.least: Level = least
        self.dropped = 0
        self._stream = stream

    def __call__(self, event: str, level: Level = "info", /, **fields: Value) -> None:
        """Write one line, unless it is below the least level: those fields that are not None."""
        if LEVELS.index(level) < LEVELS.index(self.least):
            return
        fields = {key: value for key, value in fields.items() if value is not None}
        fields["process"] = "supervisor"
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        if self.log_format == "json":
            line = json.dumps({**fields, "event": event, "level": level, "timestamp": at})
        else:
            told = " ".join(f"{key}={_plain(value)}" for key, value in fields.items())
            line = f"{at} [{level:9}] {event} {told}"
        if not write_line(self._stream or sys.stderr, line):
            self.dropped += 1


def write_line(stream: TextIO, line: str) -> bool:
    """Write and flush one line unless that would block; say whether it went out."""
    try:
        if not _writable(stream):
            return False
        told = line.encode("ascii", "backslashreplace")[:MAX_LINE_BYTES]
        stream.write(told.decode() + "\n")
        stream.flush()
    except (OSError, ValueError):  # the reader left, or the stream is closed
        return False
    return True


def _writable(stream: TextIO) -> bool:
    try:
        fd = stream.fileno()
    except (OSError, ValueError):  # a stream in memory
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    # Any answer will do: on an error the write tells, and macOS calls terminals invalid here.
    return bool(poll.poll(0))


def _plain(value: Value) -> str:
    text = str(value)
    if text and text.isprintable() and not set(text) & {" ", '"', "="}:
        return text
    return json.dumps(text)
