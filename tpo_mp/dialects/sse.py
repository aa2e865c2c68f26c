"""Server-sent events: cutting a byte stream into events, wherever its reads were cut.

Source: WHATWG HTML, server-sent events: lines end in LF, CR or CRLF, one space after the colon is
dropped; comments, unknown fields and events without data are skipped, and so is an event at the
end without its blank line.  Text is not decoded, so a character cut in two is no matter.

Known weakness: an event may not exceed ``MAX_EVENT_BYTES``.
"""

from __future__ import annotations

from tpo_mp.errors import BackendFailure

MAX_EVENT_BYTES = 8 << 20
"""A Responses stream repeats the whole answer in its last event."""


class EventCutter:
    """Feeds on bytes, yields ``(event name, data)`` of each complete event that has data."""

    __slots__ = ("_after_cr", "_clean", "_parts", "_rest", "_size", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._started = False
        self._clean = False

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` for an endless event."""
        if self._clean and chunk.startswith(b"data: "):
            end = chunk.find(b"\n")
            if 6 < end == len(chunk) - 2 and chunk.endswith(b"\n\n") and b"\r" not in chunk:
                return [(b"", chunk[6:end])]
        if self._after_cr or b"\r" in chunk:
            chunk = self._one_newline(chunk)
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        if self._parts:
            self._parts.append(chunk)
            chunk = self._rest + b"".join(self._parts)
            self._parts = []
        elif self._rest:
            chunk = self._rest + chunk
        if not self._started:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        blocks = chunk.split(b"\n\n")
        self._rest = blocks.pop()
        self._clean = not self._rest and not self._after_cr
        self._size = len(self._rest)
        if self._size > MAX_EVENT_BYTES:
            self._refuse()
        found = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                if len(block) > 6:
                    found.append((b"", block[6:]))
            elif block:
                self._read(block, found)
        return found

    def _keep(self, chunk: bytes) -> None:
        self._clean = False
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > MAX_EVENT_BYTES:
            self._refuse()

    def _refuse(self) -> None:
        raise BackendFailure("upstream sent an endless event", reason="endless_reply")

    def _one_newline(self, chunk: bytes) -> bytes:
        """CRLF and CR as LF; a CR at the end was already counted as the line's end."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if chunk.endswith(b"\r"):
            self._after_cr = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _read(self, block: bytes, found: list[tuple[bytes, bytes]]) -> None:
        cut = block.find(b"\n")
        plain = block.startswith(b"event: ") and block.startswith(b"data: ", cut + 1)
        if plain and block.find(b"\n", cut + 1) < 0 and len(block) > cut + 7:
            found.append((block[7:cut], block[cut + 7 :]))
            return
        name = b""
        data = []
        for line in block.split(b"\n"):
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif line.startswith(b"event:"):
                name = line[6:].removeprefix(b" ")
        whole = b"\n".join(data)
        if whole:
            found.append((name, whole))
