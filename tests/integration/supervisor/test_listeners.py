"""Binding the listeners."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.wait import free_port
from tpo_mp.errors import ExitCode
from tpo_mp.supervisor.sockets import AddressError, Listeners, open_listeners


@pytest.fixture
def taken() -> Iterator[int]:
    """A port somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def opened(port: int = 0, ops_port: int = 0, **options: bool) -> Listeners:
    """Two slots on loopback."""
    return open_listeners(
        "127.0.0.1", port, ops_port, slots=2,
        shared=options.get("shared", False), ops_explicit=options.get("explicit", False),
    )  # fmt: skip


def test_a_picked_port_is_the_same_for_all_slots() -> None:
    """``port = 0`` means one free port, two listeners."""
    found = opened()
    ports = {listener.getsockname()[1] for listener in found.slots}
    assert ports == {found.port}
    assert len({listener.fileno() for listener in found.slots}) == 2
    assert not any(listener.getblocking() for listener in found.slots)
    found.close()


def test_in_shared_mode_all_slots_have_one_socket() -> None:
    """Where the kernel does not balance."""
    found = opened(shared=True)
    assert len({listener.fileno() for listener in found.slots}) == 1
    found.close()


def test_a_port_with_another_listener_is_refused(taken: int) -> None:
    """The message names the address, the code is its own."""
    with pytest.raises(AddressError, match=f"in use: 127.0.0.1:{taken}") as caught:
        opened(taken)
    assert caught.value.exit_code is ExitCode.ADDRESS_IN_USE


def test_a_second_host_does_not_join_the_first() -> None:
    """Although both would use ``SO_REUSEPORT``, the probe sees the first."""
    first = opened()
    with pytest.raises(AddressError, match="in use"):
        opened(first.port)
    first.close()


def test_the_default_ops_port_moves_when_it_is_taken(taken: int) -> None:
    """A free one is used and reported."""
    found = opened(ops_port=taken)
    assert found.ops_moved
    assert found.ops_port != taken
    found.close()


def test_an_explicit_ops_port_that_is_taken_is_refused(taken: int) -> None:
    """And nothing stays bound."""
    with pytest.raises(AddressError, match="in use"):
        opened(ops_port=taken, explicit=True)


def test_an_address_that_is_not_ours_is_refused() -> None:
    """With the system's reason."""
    with pytest.raises(AddressError, match=r"cannot bind 192\.0\.2\.1"):
        open_listeners("192.0.2.1", 0, 0, slots=1, shared=False, ops_explicit=False)


def test_a_port_in_time_wait_can_be_bound_again() -> None:
    """A restart does not wait for old connections."""
    first = opened()
    with socket.create_connection(("127.0.0.1", first.port)) as client:
        listener = next(one for one in first.slots if _accepts(one))
        listener.close()
        client.close()
    first.close()
    opened(first.port).close()


def _accepts(listener: socket.socket) -> bool:
    listener.settimeout(0.05)
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return False
    return True


RACER = """
import sys, time
from tpo_mp.supervisor.sockets import AddressError, open_listeners
while time.time() < float(sys.argv[2]):
    pass
try:
    held = open_listeners(
        "127.0.0.1", int(sys.argv[1]), 0, slots=2, shared=False, ops_explicit=False
    )
except AddressError:
    print("refused", flush=True)
else:
    print("got it", flush=True)
sys.stdin.read()
"""


def test_of_hosts_that_start_together_one_gets_the_port() -> None:
    """At no moment of its claim can another one join, although all would share the port."""
    for _ in range(5):
        port, start_at = free_port(), time.time() + 1.5
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, str(port), str(start_at)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip
        said = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
        for racer in racers:
            racer.communicate(timeout=60)
        assert sorted(said) == ["got it", "refused", "refused", "refused"]


def test_connections_know_how_long_a_silent_client_is_believed() -> None:
    """Accepted sockets inherit the questions and the patience of their listener."""
    found = opened()
    found.give_up_dead_peers(45.0, 30.0)
    clients = [socket.create_connection(("127.0.0.1", found.port)) for _ in range(64)]
    for listener in found.slots:
        listener.settimeout(30)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if sys.platform == "linux":
                read = [
                    accepted.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
                                   socket.TCP_USER_TIMEOUT)
                ]  # fmt: skip
                assert read == [22, 7, 3, 45_000]
    found.give_up_dead_peers(2.0, 30.0)
    for client in clients:
        client.close()
    if sys.platform == "linux":
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        read = [found.slots[0].getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert read == [1, 1, 30_000], "a slow reader has its own limit"
    found.close()
