"""Commands to a running supervisor over a Unix socket: one JSON line in, one JSON line out.

::

    {"command": "status"}            answered at once
    {"command": "reload"}            answered when every seat has said yes or one said no
    {"command": "restart"}           answered when the last slot was replaced
    {"command": "stop", "quick": false}   answered at once; the pid file's lock tells the end

Invariants: the socket lies in a 0700 directory, which is the whole of its access control; a client
that says nothing, too much, reads nothing, or left while its answer was made is dropped and never
waited for; without a descriptor for another client nobody spins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeAlias

from .statedir import StateDir, socket_address

MAX_CLIENTS = 16
MAX_REQUEST_BYTES = 64 * 1024
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PATIENCE_S = 10.0
"""How long a client may take to ask, and then to read its answer."""

Answer: TypeAlias = dict[str, Any]
Respond: TypeAlias = Callable[[Answer], None]
Handle: TypeAlias = Callable[[Answer, Respond], None]


class _Client:
    """One connection and what it has said so far."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.received = b""
        self.reply = b""
        self.asked = False
        self.left = False
        self.give_up_at = now + PATIENCE_S

    def respond(self, answer: Answer) -> None:
        """Queue the answer; it leaves with the next turn."""
        self.reply = json.dumps(answer).encode() + b"\n"
        self.give_up_at = monotonic() + PATIENCE_S

    def look(self) -> None:
        """Notice that it left while its answer was made, which may take hours."""
        poll = select.poll()
        poll.register(self.connection, 0)  # only a full hang-up; half a close still wants an answer
        self.left = bool(poll.poll(0))


class CommandSocket:
    """The listening end; never blocks."""

    def __init__(self, state_dir: StateDir, handle: Handle) -> None:
        self._handle = handle
        self._clients: list[_Client] = []
        self._short = False
        state_dir.socket_path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        with socket_address(state_dir.path) as address:
            self._listener.bind(address)
        self._listener.listen(MAX_CLIENTS)

    def filenos(self) -> list[int]:
        """Return the descriptors to wait for."""
        waiting = [client.connection.fileno() for client in self._clients if not client.asked]
        # A client that waits where none can be taken must not wake us for nothing.
        full = self._short or len(self._clients) >= MAX_CLIENTS
        return waiting if full else [self._listener.fileno(), *waiting]

    def turn(self, now: float) -> None:
        """Accept, read, and answer whatever is possible without waiting."""
        self._accept(now)
        for client in list(self._clients):
            try:
                done = self._serve(client, now)
            except OSError:
                done = True
            if done:
                self._clients.remove(client)
                client.connection.close()

    def close(self) -> None:
        """Answer what is queued and close."""
        self.turn(0.0)
        for client in self._clients:
            client.connection.close()
        self._clients.clear()
        self._listener.close()

    def _accept(self, now: float) -> None:
        while len(self._clients) < MAX_CLIENTS:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                self._short = error.errno in NO_DESCRIPTOR
                return
            self._short = False
            connection.setblocking(False)
            self._clients.append(_Client(connection, now))

    def _serve(self, client: _Client, now: float) -> bool:
        if not client.asked and self._read(client):
            return True
        if client.asked and not client.reply:
            client.look()
            return client.left
        if client.reply:
            with contextlib.suppress(BlockingIOError):
                client.reply = client.reply[client.connection.send(client.reply) :]
            if not client.reply:
                return True
        return now >= client.give_up_at

    def _read(self, client: _Client) -> bool:
        """Read a request; True when the client is to be dropped."""
        try:
            data = client.connection.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return False
        client.received += data
        if b"\n" not in client.received:
            return not data or len(client.received) > MAX_REQUEST_BYTES
        client.asked = True
        client.give_up_at = float("inf")
        try:
            request = json.loads(client.received.partition(b"\n")[0])
            if not isinstance(request, dict):
                raise TypeError("want a JSON object")
        except (TypeError, ValueError) as error:
            client.respond({"ok": False, "error": f"not a request: {error}"})
            return False
        self._handle(request, client.respond)
        return False
