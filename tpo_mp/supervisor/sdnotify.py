"""The service manager's notify socket (``sd_notify``), a no-op where there is none.

Protocol: https://www.freedesktop.org/software/systemd/man/sd_notify.html

Invariant: a slow or missing service manager never blocks the supervisor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceNotifier:
    """Tells the service manager what we are doing."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        address = env.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._watchdog_s = _watchdog_s(env)
        self._next_ping_at = 0.0
        if address.startswith(("/", "@")):
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """Report that every slot serves."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self, now: float) -> None:
        """Report a reload; ``ready`` ends it.  ``now`` is CLOCK_MONOTONIC seconds."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """Report the drain or stop."""
        self._send("STOPPING=1")

    def ping(self, now: float) -> None:
        """Feed the watchdog at half its period."""
        if self._watchdog_s and now >= self._next_ping_at:
            self._next_ping_at = now + self._watchdog_s / 2
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:  # full, or the service manager is gone: it has its own timeouts
            return


def _watchdog_s(env: Mapping[str, str]) -> float:
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    micros = env.get("WATCHDOG_USEC", "")
    return int(micros) / 1e6 if micros.isdigit() else 0.0
