"""Wakes one seat: an eventfd on Linux, a pipe elsewhere, both non-blocking.

::

    eventfd   one descriptor (r == w)   a u64 counter: ring adds 1, clear reads and zeroes it
    pipe      r, w                      ring writes 8 bytes, clear reads all there is (<= 64 KiB)

Anyone may ring; only the seat's occupant clears.  States: 0 silent -> 1 rung; rings in state 1
coalesce.  A full pipe or a saturated counter is state 1 already, so ``ring`` never fails on it.

Order: records are published *before* the ring, and the occupant clears *before* it drains, so a
record published after its drain finds the bell silent and rings it again.  The system calls order
memory by themselves.
The ringer dies between publishing and ringing: the bell stays silent although there are records.
The occupant dies between clearing and draining: the next occupant starts with a drain.  Hence the
rule that makes a lost ring harmless: **whoever waits rechecks its rings within 10 ms while calls
are outstanding, and drains once at start.**  For answers of engines, whose tokens come milliseconds
apart, that is 50 ms until one was lost (``http.engine_links``).
Nothing is rung conditionally: a "sleeping" flag would need an ordering Python cannot give.
"""

from __future__ import annotations

import os
import sys

from . import failpoints
from .segment import portable

_ONE = (1).to_bytes(8, sys.byteorder)
_ALL = 1 << 16


class Doorbell:
    """One seat's bell; ``fileno`` is the descriptor a loop watches for reading."""

    __slots__ = ("_read_fd", "_write_fd")

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd

    @classmethod
    def create(cls) -> Doorbell:
        """Make a new bell, silent."""
        if portable():
            read_fd, write_fd = os.pipe()
            os.set_blocking(read_fd, False)
            os.set_blocking(write_fd, False)
            return cls(read_fd, write_fd)
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return cls(fd, fd)

    @classmethod
    def attach(cls, r: int, w: int) -> Doorbell:
        """Use inherited descriptors, as ``fds`` gave them."""
        return cls(r, w)

    @property
    def fds(self) -> tuple[int, int]:
        """Read and write descriptor, to be passed to children."""
        return self._read_fd, self._write_fd

    def fileno(self) -> int:
        """The descriptor to watch for reading."""
        return self._read_fd

    def ring(self) -> None:
        """Wake the occupant; never blocks and never raises on a full bell (about 0.6 us)."""
        if failpoints.ACTIVE and failpoints.hit("ring.before_doorbell"):
            return
        try:  # ``suppress`` would cost more than the call
            os.write(self._write_fd, _ONE)
        except BlockingIOError:
            return

    def clear(self) -> None:
        """Silence the bell; call it before draining, never after."""
        try:
            os.read(self._read_fd, _ALL)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends."""
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)
