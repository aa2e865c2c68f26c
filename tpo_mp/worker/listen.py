"""Which listeners this shard accepts on, now.

Normally its own slot's; also those of silent neighbours, while the supervisor names it as their
acceptor.  A listener's descriptor is duplicated for the event loop, so that letting go of it never
closes the supervisor's socket.

Invariants: before a listener is let go in a drain it is accepted empty, so no queued connection is
reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable

from tpo_mp.shm.plane import Plane


class Listening:
    """The accepting side of one shard."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        plane: Plane,
        seat: int,
        listeners: list[int],
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._plane = plane
        self._seat = seat
        self._listeners = listeners
        self._protocol = protocol
        self._tls = tls
        self._servers: dict[int, asyncio.Server] = {}
        self.version = -1
        self._busy = False

    @property
    def accepting(self) -> bool:
        """Whether any listener is open here."""
        return bool(self._servers)

    async def follow(self) -> None:
        """Accept on exactly the listeners the plane gives this seat."""
        version = self._plane.acceptor_version
        if version == self.version or self._busy:
            return
        self._busy = True
        try:
            self.version = version
            plane, listeners = self._plane, self._listeners
            # Portable hosts share one socket between all slots: accept on it once.
            wanted = {
                listeners[s] for s in range(plane.workers) if plane.slot_acceptor(s) == self._seat
            }
            for fd in list(self._servers):
                if fd not in wanted:
                    self._servers.pop(fd).close()
            for fd in wanted:
                if fd not in self._servers:
                    self._servers[fd] = await self._open(fd)
        finally:
            self._busy = False

    async def _open(self, fd: int) -> asyncio.Server:
        listener = socket.socket(fileno=os.dup(fd))
        listener.setblocking(False)
        return await self._loop.create_server(
            self._protocol, sock=listener, backlog=4096, ssl=self._tls
        )

    async def drain(self) -> None:
        """Take what the kernel has queued, then stop accepting."""
        # The loop accepts until EAGAIN whenever a listener is readable: two turns empty the queue.
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self.version = -1

    def close(self) -> None:
        """Close this process's copies of all listeners."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for fd in set(self._listeners):
            with contextlib.suppress(OSError):
                os.close(fd)
