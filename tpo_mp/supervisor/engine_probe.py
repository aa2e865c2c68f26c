"""Asks an engine over HTTP whether it can serve, without ever waiting for it.

One question at a time on a connection of its own; ``turn`` takes it as far as it goes.

Invariants: nothing here blocks; an answer counts by its status line alone.
"""

from __future__ import annotations

import errno
import select
import socket
from dataclasses import dataclass

from tpo_mp.config.engines import HOST

HEAD_BYTES = 4096


@dataclass(slots=True)
class EngineProbe:
    """One question: a GET of ``path``, or a POST of ``body``; an empty path only connects.

    ``status`` is the answer's HTTP status once there is one; 0 says that nobody answered.
    """

    port: int
    path: str
    give_up_at: float
    body: bytes = b""
    status: int | None = None
    _socket: socket.socket | None = None
    _unsent: bytes = b""
    _received: bytes = b""
    _connected: bool = False

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        verb = "POST" if self.body else "GET"
        head = f"{verb} {self.path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nConnection: close\r\n"
        if self.body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        self._unsent = head.encode() + b"\r\n" + self.body
        code = self._socket.connect_ex((HOST, self.port))
        if code not in (0, errno.EINPROGRESS):
            self._end(0)

    @property
    def waits_for(self) -> tuple[int, int] | None:
        """The descriptor and the event that ``turn`` waits for; ``None`` when it has ended."""
        if self._socket is None:
            return None
        wants = select.POLLIN if self._connected and not self._unsent else select.POLLOUT
        return self._socket.fileno(), wants

    def turn(self, now: float) -> int | None:
        """Go on; answer the status when it is known."""
        if self._socket is not None:
            try:
                self._step(self._socket)
            except BlockingIOError:
                pass
            except OSError:
                self._end(0)
            if self.status is None and now >= self.give_up_at:
                self._end(0)
        return self.status

    def close(self) -> None:
        """Drop the question."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _step(self, connection: socket.socket) -> None:
        if not self._connected:
            poll = select.poll()
            poll.register(connection, select.POLLOUT)
            if not poll.poll(0):
                return
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end(0)
                return
            self._connected = True
            if not self.path:
                self._end(200)
                return
        while self._unsent:
            self._unsent = self._unsent[connection.send(self._unsent) :]
        while b"\r\n" not in self._received and len(self._received) < HEAD_BYTES:
            part = connection.recv(HEAD_BYTES)
            if not part:
                self._end(0)
                return
            self._received += part
        words = self._received.split(b"\r\n", 1)[0].split()
        plain = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
        self._end(int(words[1]) if plain else 0)

    def _end(self, status: int) -> None:
        self.status = status
        self.close()
