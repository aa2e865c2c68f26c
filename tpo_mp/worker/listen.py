"""Which listeners this shard accepts on, now.

Its own slot's for as long as it serves, so that no other process's word can keep it from its
clients; also those of silent neighbours, while the supervisor names it as their acceptor.  Two
acceptors of one listener harm nobody.  A listener's descriptor is duplicated for the event loop, so
that letting go of it never closes the supervisor's socket.

Invariants: before a listener is let go in a drain it is accepted empty, so no queued connection is
reset; while few descriptors are left nothing is accepted, so clients wait in the kernel's queue
instead of being cut off by a loop that has no descriptor to take them with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from tpo_mp.shm.plane import Plane

SHUTDOWN_S = 1.0
RESERVED_FDS = 32
"""Descriptors left to what is accepted already: upstream connections, files."""
DRAIN_S = 0.2
LAST_DRAIN_S = 2.0
"""For the last ones on a listener, whose queue ends: nobody else will take who is in it."""


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
        handshake_s: float = 10.0,
        warn: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``handshake_s`` bounds a TLS handshake: until its end no connection of ours exists."""
        self._loop = loop
        self._plane = plane
        self._seat = seat
        self._listeners = listeners
        self._protocol = protocol
        # asyncio takes the two spans with a context only.
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": handshake_s,
                "ssl_shutdown_timeout": SHUTDOWN_S,
            }
        self._warn = warn
        self._paused = self._closed = False
        self._servers: dict[int, asyncio.Server] = {}
        self.version = -1
        self._busy = False
        self._taken: WeakSet[asyncio.Protocol] = WeakSet()
        """Behind TLS: what was accepted; what comes to nothing is dropped by the loop."""

    @property
    def handshakes(self) -> int:
        """Clients that were accepted and whose TLS handshake is under way."""
        return sum(getattr(taken, "transport", None) is None for taken in self._taken)

    @property
    def accepting(self) -> bool:
        """Whether any listener is open here."""
        return bool(self._servers)

    async def follow(self, slot: int) -> None:
        """Accept on the listener of ``slot``, and on those the plane gives this seat."""
        version = self._plane.acceptor_version
        if version == self.version or self._busy or self._paused:
            return
        if self._descriptors_left() < RESERVED_FDS:
            self._paused = True
            return
        self._busy = True
        try:
            self.version = version
            plane, listeners = self._plane, self._listeners
            # Portable hosts share one socket between all slots: accept on it once.
            wanted = {
                listeners[s]
                for s in range(plane.workers)
                if s == slot or plane.slot_acceptor(s) == self._seat
            }
            for fd in list(self._servers):
                if fd not in wanted:
                    self._servers.pop(fd).close()
            for fd in wanted:
                if fd not in self._servers:
                    self._servers[fd] = await self._open(fd)
        finally:
            self._busy = False

    def tick(self) -> None:
        """Stop accepting while descriptors are short; ``follow`` accepts again afterwards."""
        left = self._descriptors_left()
        if self._paused:
            if left >= 2 * RESERVED_FDS:
                self._paused = False
                self.version = -1
                self._warn("accepting_again")
        elif left < RESERVED_FDS:
            self._pause()

    def _accepted(self) -> asyncio.Protocol:
        """Make the protocol of a new connection; it may be the last for now."""
        if not self._paused and self._descriptors_left() < RESERVED_FDS:
            # The loop takes one connection per turn: this comes before the next.
            self._loop.call_soon(self._pause)
        taken = self._protocol()
        if self._tls:
            self._taken.add(taken)
        return taken

    def _pause(self) -> None:
        if not self._paused and self._servers:
            self._paused = True
            self._stop_accepting()
            self._warn("accepting_paused")

    def _descriptors_left(self) -> int:
        """How many there are at least: the kernel hands out the lowest that is free."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            lowest = os.dup(self._listeners[0])
        except OSError:
            return 0
        os.close(lowest)
        return limit - lowest

    async def _open(self, fd: int) -> asyncio.Server:
        listener = socket.socket(fileno=os.dup(fd))
        listener.setblocking(False)
        return await self._loop.create_server(
            self._accepted, sock=listener, backlog=4096, **self._tls
        )

    async def drain(self, *, for_all: bool) -> None:
        """Take what the kernel has queued, then stop accepting.

        ``for_all`` ends the listeners themselves.  Other processes may keep their copies open a
        moment longer, a spare that still boots for one: the kernel would go on queueing
        connections that nobody takes, and reset them at the last close.  Before that their queues
        are made as short as can be, so that who comes meanwhile is refused a moment later, when
        the port is closed, and not accepted by the kernel only to be reset.
        """
        if for_all:
            for fd in self._servers:
                _shorten(fd)
        give_up_at = self._loop.time() + (LAST_DRAIN_S if for_all else DRAIN_S)
        # The loop takes one connection per listener and turn.
        while self._queued() and self._loop.time() < give_up_at:  # noqa: ASYNC110 - a kernel queue
            await asyncio.sleep(0)
        drained = list(self._servers)
        self._stop_accepting()
        # The loop tells of a connection one turn after it took it: who asks next whether anybody
        # is here shall know of the last one.
        await asyncio.sleep(0)
        self.version = -1
        if for_all:
            for fd in drained:
                _refuse(fd)

    def _queued(self) -> bool:
        poll = select.poll()
        for fd in self._servers:
            poll.register(fd, select.POLLIN)
        # A listener that somebody else has ended is readable for ever, and has nothing.
        return any(not happened & select.POLLHUP for _, happened in poll.poll(0))

    def _stop_accepting(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def close(self) -> None:
        """Close this process's copies of all listeners, once: their numbers are others' then."""
        self._stop_accepting()
        if self._closed:
            return
        self._closed = True
        for fd in set(self._listeners):
            with contextlib.suppress(OSError):
                os.close(fd)


def _shorten(fd: int) -> None:
    """Let the kernel queue no more than one connection that is not accepted yet."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
        listener.listen(0)


def _refuse(fd: int) -> None:
    """End a listener in every process that has it; elsewhere than on Linux this does nothing."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
        listener.shutdown(socket.SHUT_RD)
