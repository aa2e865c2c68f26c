"""A WebSocket client that sends exactly the frames it is told to, right or wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any, Self

from .raw import RawClient, RawReply

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = base64.b64encode(bytes(range(16))).decode()
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame from the server."""

    opcode: int
    payload: bytes
    final: bool = True

    @property
    def code(self) -> int:
        """The code of a close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big")


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, mask: bool = True, rsv: int = 0
) -> bytes:
    """Write one client frame."""
    first = (0x80 if final else 0) | rsv << 4 | opcode
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head = struct.pack("!BB", first, bit | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", first, bit | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(payload))
    if not mask:
        return head + payload
    # A mask of zeros is a mask: the payload stays readable in a test's bytes.
    return head + b"\0\0\0\0" + payload


def handshake(client: RawClient, path: str, **changes: str | None) -> bytes:
    """Write an upgrade request; ``None`` leaves a header out, ``_`` in names is a dash."""
    headers: dict[str, str | None] = {
        "Host": client.host, "Upgrade": "websocket", "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
    }  # fmt: skip
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


class RawSocket(RawClient):
    """One upgraded connection."""

    def upgrade(self, path: str, after: bytes = b"", **changes: str | None) -> Self:
        """Shake hands; ``after`` is sent in the same packet."""
        self.send(handshake(self, path, **changes) + after)
        status, headers, head = self.read_head()
        assert status == 101, head
        digest = hashlib.sha1(KEY.encode() + _GUID).digest()
        assert headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
        assert "sec-websocket-extensions" not in headers
        return self

    def refused(self, path: str, **changes: str | None) -> RawReply:
        """Shake hands in vain."""
        self.send(handshake(self, path, **changes))
        return self.read_reply()

    def say(self, value: Any) -> None:
        """Send one JSON message."""
        self.send(frame(TEXT, json.dumps(value).encode()))

    def next(self) -> Frame:
        """Read one frame; the server must not mask."""
        first, second = self.read_exactly(2)
        assert not second & 0x80, "masked by the server"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self.read_exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.read_exactly(8))
        return Frame(first & 15, self.read_exactly(size), final=bool(first & 0x80))

    def message(self) -> dict[str, Any]:
        """Read the next JSON message, answering pings."""
        while (seen := self.next()).opcode == PING:
            self.send(frame(PONG, seen.payload))
        assert seen.opcode == TEXT, seen
        value: dict[str, Any] = json.loads(seen.payload)
        return value

    def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Read messages up to one of a type."""
        found = [self.message()]
        while found[-1]["type"] not in kinds:
            found.append(self.message())
        return found

    def close_code(self) -> int:
        """Read on until the server closes, and answer its code."""
        while (seen := self.next()).opcode != CLOSE:
            pass
        return seen.code
