"""Binding the listeners."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

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
