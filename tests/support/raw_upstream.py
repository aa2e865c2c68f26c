"""An upstream whose every connection is served by a test's own function, on a thread.

``Upstream`` speaks HTTP and misbehaves in known ways; here a test decides about each byte.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from .raw import parse_request_length

Serve = Callable[["RawUpstream", socket.socket, int], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
COMPLETION = (
    b'{"id":"r","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"fine"},"finish_reason":"stop"}]}'
)
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DELTA = b'data: {"id":"r","choices":[{"index":0,"delta":{"content":"piece"}}]}\n\n'


class RawUpstream:
    """A listener; a context manager.  ``serve(self, connection, number)`` runs on a thread each."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="raw-upstream", daemon=True)

    @property
    def base_url(self) -> str:
        """What a backend's ``base_url`` is set to."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(
                target=self._run, args=(connection, self.connections), daemon=True
            ).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError, EOFError):
            self._serve(self, connection, number)
        self._open.discard(connection)

    def take(self, connection: socket.socket) -> bytes:
        """Read one request; raises ``EOFError`` when the peer leaves first."""
        data = b""
        while (length := parse_request_length(data)) is None or len(data) < length:
            more = connection.recv(65536)
            if not more:
                raise EOFError
            data += more
        self.requests.append(data)
        return data


def chunk(data: bytes) -> bytes:
    """Frame one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes = COMPLETION) -> bytes:
    """Write a proper reply."""
    return OK % (len(body), body)
