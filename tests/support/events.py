"""A reader of server-sent events that sees each one as it comes, comments included."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from .raw import RawClient


@dataclass(frozen=True, slots=True)
class Event:
    """One event; a comment has no name."""

    name: str
    id: str
    data: dict[str, Any]
    comment: str = ""


class EventClient(RawClient):
    """One connection that reads one event stream."""

    def get(self, target: str, headers: dict[str, str] | None = None) -> Self:
        """Ask for a stream and read its head."""
        named = {"Host": self.host} | (headers or {})
        lines = [f"{name}: {value}" for name, value in named.items()]
        self.send("\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode())
        return self._begun()

    def post(self, target: str, value: Any, headers: dict[str, str] | None = None) -> Self:
        """Start a stream and read its head."""
        body = json.dumps(value).encode()
        named = {"Host": self.host, "Content-Type": "application/json"} | (headers or {})
        named["Content-Length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in named.items()]
        self.send("\r\n".join([f"POST {target} HTTP/1.1", *lines, "", ""]).encode() + body)
        return self._begun()

    def _begun(self) -> Self:
        status, self.headers, head = self.read_head()
        assert status == 200, (head, self.read_some())
        assert self.headers["content-type"].startswith("text/event-stream")
        self._chunks = self.chunks()
        self._text = b""
        return self

    def next(self) -> Event | None:
        """Read the next event or comment; ``None`` at the end of the body."""
        while b"\n\n" not in self._text:
            more = next(self._chunks, None)
            if more is None:
                assert not self._text, self._text
                return None
            self._text += more
        block, _, self._text = self._text.partition(b"\n\n")
        if block.startswith(b":"):
            return Event("", "", {}, block.decode())
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        return Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))

    def event(self) -> Event:
        """Read the next event, passing over comments."""
        while (seen := self.next()) is not None:
            if seen.name:
                return seen
        raise AssertionError("the stream ended")

    def rest(self) -> list[Event]:
        """Read all events up to the end of the body."""
        found = []
        while (seen := self.next()) is not None:
            if seen.name:
                found.append(seen)
        return found
