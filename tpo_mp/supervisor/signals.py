"""Signals of the supervisor as a queue, and a descriptor that wakes its one wait.

Invariants: handlers only enqueue; SIGCHLD only wakes, since the reap verb asks for every child
anyway; the wake-up pipe never blocks and may lose bytes, because the queue is the truth.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)


class SignalQueue:
    """Collects signals between two turns of the loop."""

    def __init__(self) -> None:
        self.pending: deque[signal.Signals] = deque(maxlen=64)
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._note) for number in HANDLED}
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _only_wake)
        self._previous[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with every signal."""
        return self._read_fd

    def take(self) -> list[signal.Signals]:
        """Return the signals since the last call, oldest first."""
        try:
            while os.read(self._read_fd, 4096):
                pass
        except BlockingIOError:
            pass
        taken = []
        while self.pending:
            taken.append(self.pending.popleft())
        return taken

    def close(self) -> None:
        """Put the previous handlers back."""
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending.append(signal.Signals(number))


def _only_wake(_number: int, _frame: FrameType | None) -> None:
    """Exist: the wake-up descriptor is written only for signals that have a handler."""
