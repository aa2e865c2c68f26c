"""The listening sockets: one per slot, kept by the supervisor for life.

A queued connection survives its worker's death because the listener is ours, not the worker's.
Where ``SO_REUSEPORT`` does not balance (macOS, the portable mode) all slots share one socket.

The first listener is bound and listens *without* ``SO_REUSEPORT``, so that a second instance fails
instead of taking half of the connections; only then is it opened for the others to join.  At no
moment is the port unclaimed, and of two hosts that start together one gets it.

A client that vanished without a word (its cable, its machine, a router that forgot it) says nothing
ever after.  The kernel is told to ask (keep-alive), and to give up what stays unacknowledged, after
``dead_peer_s`` in either case.  Accepted sockets inherit this from the listener.

Invariants: sockets are non-blocking and not inheritable by default.
Known weakness: elsewhere than on Linux unacknowledged data is given up when the system's own, much
longer, patience ends.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass

from tpo_mp.errors import ExitCode, Fault

BACKLOG = 4096
DEFAULT_OPS_PORT = 9090
PORT_TRIES = 8
KEEPALIVE_PROBES = 3


class AddressError(Fault):
    """An address cannot be bound; ``exit_code`` says how the command ends."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message, reason="address")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of one host; ``slots`` names the same socket N times in shared mode."""

    host: str
    port: int
    slots: tuple[socket.socket, ...]
    ops: socket.socket
    ops_port: int
    ops_moved: bool

    def url(self, *, tls: bool) -> str:
        """Where clients connect."""
        return _url("https" if tls else "http", self.host, self.port)

    @property
    def ops_url(self) -> str:
        """Where operators look."""
        return _url("http", self.host, self.ops_port)

    def give_up_dead_peers(self, dead_peer_s: float, slow_reader_s: float) -> None:
        """Let connections accepted from now on end when their client is gone; see the module.

        A client that is there and reads nothing has its own limit, ``slow_reader_s``: what the
        kernel holds for it is not given up before.
        """
        for listener in set(self.slots):
            _watch_peers(listener, dead_peer_s, max(dead_peer_s, slow_reader_s))

    def close_slots(self) -> None:
        """Give up the client port; it closes when the workers have closed their copies."""
        for listener in self.slots:
            listener.close()

    def close(self) -> None:
        """Close everything."""
        self.close_slots()
        self.ops.close()


def _url(scheme: str, host: str, port: int) -> str:
    """Write an address, with brackets around an IPv6 host."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def open_listeners(
    host: str, port: int, ops_port: int, *, slots: int, shared: bool, ops_explicit: bool
) -> Listeners:
    """Bind everything or nothing; raises ``AddressError``."""
    with contextlib.ExitStack() as undo:
        bound = _open_slots(host, port, 1 if shared else slots)
        for listener in bound:
            undo.callback(listener.close)
        actual = bound[0].getsockname()[1]
        ops, moved = _open_ops(host, ops_port, ops_explicit)
        undo.pop_all()
    each = bound * slots if shared else bound
    return Listeners(host, actual, tuple(each), ops, ops.getsockname()[1], moved)


def _open_slots(host: str, port: int, count: int) -> list[socket.socket]:
    for attempt in range(PORT_TRIES):
        opened = [_listen(host, port)]
        chosen: int = opened[0].getsockname()[1]
        try:
            if count > 1:
                opened[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while len(opened) < count:
                opened.append(_listen(host, chosen, reuse_port=True))
        except (AddressError, OSError):
            for listener in opened:
                listener.close()
            # Somebody else's claim on a port the kernel picked may have come between the two.
            if port or attempt == PORT_TRIES - 1:
                raise
        else:
            return opened
    raise AssertionError("the last try returns or raises")


def _open_ops(host: str, port: int, explicit: bool) -> tuple[socket.socket, bool]:
    try:
        return _listen(host, port), False
    except AddressError:
        if explicit:
            raise
    return _listen(host, 0), True


def _listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    listener = _bind(host, port, reuse_port=reuse_port)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(host, port, error) from error
    listener.setblocking(False)
    return listener


def _bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        family, address = _resolve(host, port)
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _explain(host, port, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit it on Linux, which saves the workers a call per connection.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _explain(host, port, error) from error
    return bound


def _watch_peers(listener: socket.socket, idle_s: float, unread_s: float) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Half of the time in silence, the other half for the questions; whole seconds, at least one.
    first_s = max(1, int(idle_s / 2))
    step_s = max(1, int((idle_s - first_s) / KEEPALIVE_PROBES))
    wanted = (
        ("TCP_KEEPIDLE", first_s),
        ("TCP_KEEPALIVE", first_s),  # its name on macOS
        ("TCP_KEEPINTVL", step_s),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", int(unread_s * 1000)),
    )
    for name, value in wanted:
        option = getattr(socket, name, None)
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str | int, ...]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda item: item[0] != socket.AF_INET)  # "localhost" means 127.0.0.1 first
    family, _, _, _, address = found[0]
    assert len(address) in (2, 4)  # the third form needs a build without IPv6
    return family, tuple(str(part) if isinstance(part, bytes) else part for part in address)


def _explain(host: str, port: int, error: OSError) -> AddressError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return AddressError(f"address in use: {where}", ExitCode.ADDRESS_IN_USE)
    if error.errno == errno.EACCES:
        return AddressError(f"not allowed to bind {where}", ExitCode.BOOT_FAILED)
    return AddressError(f"cannot bind {where}: {error.strerror or error}", ExitCode.BOOT_FAILED)
