"""An HTTP client that sends exactly the bytes it is told to, and reads replies strictly.

``httpx`` and friends repair what they send; a bad-input test must not.
The reader fails on anything a careful client would refuse: a malformed head, a body longer than
announced, a chunk without its line end.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class RawReply:
    """One reply as it came; ``headers`` has lower-case names, the last of equal names wins."""

    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)

    @property
    def events(self) -> list[bytes]:
        """Payloads of an SSE body's ``data:`` lines."""
        return sse_data(self.body)


class ClosedEarlyError(Exception):
    """The peer closed or reset before a whole reply."""


class RawClient:
    """One connection; a context manager."""

    def __init__(
        self, url: str, *, timeout_s: float = 30.0, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname, url
        assert parts.port, url
        self.host = f"{parts.hostname}:{parts.port}"
        self.sock: socket.socket = socket.create_connection(
            (parts.hostname, parts.port), timeout=timeout_s
        )
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname=parts.hostname)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; unread data makes the kernel send a reset, as a vanished client's does."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes; a peer that already refused and closed is not an error here."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> RawReply:
        """Send one well-formed request and read its reply."""
        self.send(build(method, target, {"Host": self.host} | (headers or {}), body))
        return self.read_reply(method)

    def post_json(self, target: str, value: Any, headers: dict[str, str] | None = None) -> RawReply:
        """POST a JSON value."""
        kind = {"Content-Type": "application/json"} | (headers or {})
        return self.request("POST", target, kind, json.dumps(value).encode())

    def read_some(self) -> bytes:
        """Read what is there, waiting for at least a byte; empty at the end."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        try:
            return self.sock.recv(65536)
        except ConnectionResetError:
            return b""

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and including ``mark``; raises ``ClosedEarlyError`` at the end."""
        data = b""
        while mark not in data:
            more = self.read_some()
            if not more:
                raise ClosedEarlyError(data)
            data += more
        at = data.index(mark) + len(mark)
        self._unread = data[at:] + self._unread
        return data[:at]

    def read_exactly(self, n: int) -> bytes:
        """Read ``n`` bytes; raises ``ClosedEarlyError`` when there are fewer."""
        data = b""
        while len(data) < n:
            more = self.read_some()
            if not more:
                raise ClosedEarlyError(data)
            data += more
        self._unread = data[n:] + self._unread
        return data[:n]

    def read_head(self) -> tuple[int, dict[str, str], bytes]:
        """Read status line and headers."""
        head = self.read_until(b"\r\n\r\n")
        status, headers = parse_head(head)
        return status, headers, head

    def read_reply(self, method: str = "GET") -> RawReply:
        """Read one whole reply by its own framing."""
        status, headers, head = self.read_head()
        if method == "HEAD" or status in (204, 304):
            return RawReply(status, headers, b"", head)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            assert "content-length" not in headers, head
            return RawReply(status, headers, b"".join(self.chunks()), head)
        if "content-length" in headers:
            return RawReply(
                status, headers, self.read_exactly(int(headers["content-length"])), head
            )
        ends_by_close = (
            head.startswith(b"HTTP/1.0") or headers.get("connection", "").lower() == "close"
        )
        assert ends_by_close, f"unframed reply: {head!r}"
        return RawReply(status, headers, self.read_to_end(), head)

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks of a chunked body as they come."""
        while True:
            size = int(self.read_until(b"\r\n")[:-2], 16)
            data = self.read_exactly(size + 2)
            assert data[-2:] == b"\r\n", data
            if not size:
                return
            yield data[:-2]

    def read_to_end(self) -> bytes:
        """Read until the peer closes."""
        data = b""
        while more := self.read_some():
            data += more
        return data

    def closed(self, timeout_s: float = 15.0) -> bool:
        """Say whether the peer closes, with nothing more to read, in time."""
        self.sock.settimeout(timeout_s)
        try:
            return self.read_some() == b""
        except TimeoutError:
            return False


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Split a reply head, refusing anything not plainly HTTP/1.x."""
    lines = head.decode("latin-1").split("\r\n")
    version, status, *_ = lines[0].split(" ", 2)
    assert version in ("HTTP/1.1", "HTTP/1.0"), head
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        assert colon, head
        assert name == name.strip(), head
        assert "\n" not in value, head
        assert "\r" not in value, head
        headers[name.lower()] = value.strip()
    return int(status), headers


def build(method: str, target: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
    """Render a request; a ``Content-Length`` is added when there is a body and none is given."""
    named = {name.lower() for name in headers}
    if body is not None and not named & {"content-length", "transfer-encoding"}:
        headers = headers | {"Content-Length": str(len(body))}
    lines = [
        f"{method} {target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def sse_data(body: bytes) -> list[bytes]:
    """Split an SSE body into its events' data, joining multi-line data with a newline."""
    events = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [
            line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
        ]
        if lines:
            events.append(b"\n".join(lines))
    return events


def chat(text: str = "hello", model: str = "echo", **more: Any) -> dict[str, Any]:
    """Make a chat completion body."""
    return {"model": model, "messages": [{"role": "user", "content": text}]} | more


def ask(
    url: str, target: str, value: Any = None, headers: dict[str, str] | None = None
) -> RawReply:
    """Make one request on a connection of its own: POST when there is a value, else GET."""
    with RawClient(url) as client:
        if value is None:
            return client.request("GET", target, headers)
        return client.post_json(target, value, headers)


def parse_request_length(data: bytes) -> int | None:
    """Bytes of the request at the start of ``data``, head included; ``None`` before its end."""
    head, end, _ = data.partition(b"\r\n\r\n")
    if not end:
        return None
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return len(head) + 4
