"""The other end of the control socket, for the command line."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from tpo_mp.errors import Fault

from .statedir import running_pid, socket_address

TIMEOUT_S = 60.0
RETRY_S = 0.02


class NotRunning(Fault):
    """No supervisor answers in that state directory."""

    code = "not_running"


def request(
    state_dir: Path, command: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any
) -> dict[str, Any]:
    """Ask the supervisor of ``state_dir`` and return its answer.

    ``restart`` may take ``server.drain_s`` per slot: give it time.  Raises ``NotRunning``.
    """
    state_dir = state_dir.expanduser().absolute()
    line = json.dumps({"command": command, **arguments}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with socket_address(state_dir) as address:
                _connect(connection, address, timeout_s)
            connection.sendall(line)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        except TimeoutError:
            raise Fault(f"no answer to {command!r} within {timeout_s:g} s") from None
        except OSError as error:
            pid = running_pid(state_dir)
            what = f"pid {pid} does not answer" if pid else "nothing runs"
            raise NotRunning(f"{what} in {state_dir}: {error.strerror}") from None
    if not received:
        raise NotRunning(f"the supervisor in {state_dir} ended before it answered")
    answer: dict[str, Any] = json.loads(received)
    return answer


def _connect(connection: socket.socket, address: str, timeout_s: float) -> None:
    """Connect; to a queue that is full, as soon as the supervisor has emptied it.

    The kernel lets only a socket without a timeout wait for that.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            connection.connect(address)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise TimeoutError from None
            time.sleep(RETRY_S)
        else:
            return
