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
from typing import Literal, TextIO, TypeAlias

Level: TypeAlias = Literal["info", "warning", "error"]
Format: TypeAlias = Literal["pretty", "json"]
Value: TypeAlias = str | int | float | bool | None

MAX_LINE_BYTES = 4000
"""Below PIPE_BUF, so that a writable pipe takes the whole line."""


class Events:
    """Writes events in the configured format."""

    def __init__(self, log_format: Format = "pretty", stream: TextIO | None = None) -> None:
        self.log_format: Format = log_format
        self.dropped = 0
        self._stream = stream

    def __call__(self, event: str, level: Level = "info", /, **fields: Value) -> None:
        """Write one line: time, level, event and those of its fields that are not None."""
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
        stream.write(line[:MAX_LINE_BYTES] + "\n")
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
    return any(seen & select.POLLOUT for _, seen in poll.poll(0))


def _plain(value: Value) -> str:
    text = str(value)
    if text and text.isprintable() and not set(text) & {" ", '"', "="}:
        return text
    return json.dumps(text)
