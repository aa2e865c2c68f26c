"""Which listeners a shard accepts on: its own, a silent neighbour's, none while it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from tests.support.fake_shards import FakeHost
from tpo_mp.worker import listen
from tpo_mp.worker.listen import RESERVED_FDS, Listening


class Server:
    """An accepting listener."""

    def __init__(self, fd: int, closed: list[int]) -> None:
        self.fd = fd
        self._closed = closed

    def close(self) -> None:
        """Stop accepting."""
        self._closed.append(self.fd)


class Door:
    """A shard's listening side over pipes that stand for sockets."""

    def __init__(self, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.warned: list[str] = []
        self.fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(host.workers)]
        for slot in range(host.workers):
            host.plane.set_slot(slot, seat=slot, acceptor=slot)

        async def open_fake(_self: Listening, fd: int) -> Any:
            self.opened.append(fd)
            return Server(fd, self.closed)

        monkeypatch.setattr(Listening, "_open", open_fake)
        monkeypatch.setattr(Listening, "_queued", lambda _self: False)
        self.soon: list[Callable[[], object]] = []
        self.listening = Listening(
            loop=self,  # type: ignore[arg-type]
            plane=host.plane, seat=0, listeners=self.fds, protocol=asyncio.Protocol,
            warn=self.warned.append,
        )  # fmt: skip

    def time(self) -> float:
        """Nothing waits here."""
        return 0.0

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Keep a callback."""
        self.soon.append(callback)


@pytest.fixture
def door(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Door:
    """Shard 0 of two."""
    return Door(host, monkeypatch)


def tell(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story."""
    asyncio.run(story())  # type: ignore[arg-type]


def test_shard_follows_the_plane(door: Door) -> None:
    """Its own slot, a neighbour's while told so, and back."""

    async def story() -> None:
        await door.listening.follow(0)
        assert door.opened == door.fds[:1]
        assert door.listening.accepting
        await door.listening.follow(0)
        assert len(door.opened) == 1
        door.host.plane.set_slot(1, seat=1, acceptor=0)
        await door.listening.follow(0)
        assert door.opened == door.fds
        door.host.plane.set_slot(1, seat=1, acceptor=1)
        await door.listening.follow(0)
        assert door.closed == door.fds[1:]
        door.listening.close()

    tell(story)


def test_own_listener_is_kept_while_a_neighbour_has_it_too(door: Door) -> None:
    """A shard that was silent for a moment need not be told that it may accept again."""

    async def story() -> None:
        door.host.plane.set_slot(0, seat=0, acceptor=1)
        await door.listening.follow(0)
        assert door.opened == door.fds[:1]
        door.host.plane.set_slot(0, seat=0, acceptor=0)
        await door.listening.follow(0)
        assert (door.opened, door.closed) == (door.fds[:1], [])
        door.listening.close()

    tell(story)


@pytest.mark.parametrize("for_all", [False, True])
def test_draining_lets_go_of_everything(
    door: Door, monkeypatch: pytest.MonkeyPatch, for_all: bool
) -> None:
    """For this process or for the host; it follows again if it is told to."""
    ended: list[int] = []
    shortened: list[int] = []
    monkeypatch.setattr(listen, "_refuse", ended.append)
    monkeypatch.setattr(listen, "_shorten", shortened.append)

    async def story() -> None:
        await door.listening.follow(0)
        await door.listening.drain(for_all=for_all)
        assert shortened == ended == (door.fds[:1] if for_all else [])
        assert door.closed == door.fds[:1]
        assert not door.listening.accepting
        await door.listening.follow(0)
        assert door.listening.accepting
        door.listening.close()

    tell(story)


@pytest.mark.skipif(sys.platform != "linux", reason="how kernels queue is their own affair")
def test_a_shortened_queue_takes_one_connection_and_a_refused_one_none() -> None:
    """What else comes waits for its own retry, and is refused by then."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        listen._shorten(server.fileno())
        with contextlib.ExitStack() as clients:
            asked = []
            for _ in range(4):
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
                asked.append(client)
            poll = select.poll()
            for client in asked:
                poll.register(client, select.POLLOUT)
            taken = poll.poll(200)
            assert len(taken) == 1
            server.accept()[0].close()
            listen._refuse(server.fileno())
            with socket.socket() as late:
                assert late.connect_ex(server.getsockname()) != 0


def test_closing_gives_the_descriptors_back(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's copies, once: what gets their numbers then is somebody else's."""
    door.listening.close()
    for fd in door.fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    again: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(listen.os, "close", again.append)
        door.listening.close()
    assert not set(door.fds).intersection(again)


def test_few_descriptors_pause_accepting(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait in the kernel; with room again they are taken."""
    room = RESERVED_FDS * 4

    def limit(_what: int) -> tuple[int, int]:
        # Anew each time: what earlier tests left may be collected, and its descriptors closed, now.
        lowest = os.dup(door.fds[0])
        os.close(lowest)
        return lowest + room, 0

    monkeypatch.setattr(resource, "getrlimit", limit)

    async def story() -> None:
        nonlocal room
        await door.listening.follow(0)
        door.listening.tick()
        assert door.warned == []
        room = 0
        door.listening._accepted()
        assert len(door.soon) == 1
        door.soon.pop()()
        assert door.warned == ["accepting_paused"]
        assert not door.listening.accepting
        door.listening.tick()
        await door.listening.follow(0)
        assert not door.listening.accepting
        room = RESERVED_FDS * 4
        door.listening.tick()
        await door.listening.follow(0)
        assert door.listening.accepting
        assert door.warned == ["accepting_paused", "accepting_again"]
        door.listening.close()

    tell(story)


def test_no_descriptor_at_all_is_none_left(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for one more must not raise."""

    def full(_fd: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(listen.os, "dup", full)
        assert door.listening._descriptors_left() == 0
    door.listening.close()


class _Guest(asyncio.Protocol):
    """A connection that says that it is there."""

    def __init__(self, made: list[asyncio.BaseTransport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(transport)


def test_after_a_drain_every_connection_it_took_is_there(host: FakeHost) -> None:
    """Also the last one: a shard that thinks it is empty refuses what comes then."""
    made: list[asyncio.BaseTransport] = []

    async def one_round() -> None:
        with socket.create_server(("127.0.0.1", 0)) as served:
            host.plane.set_slot(0, seat=0, acceptor=0)
            listening = Listening(
                loop=asyncio.get_running_loop(), plane=host.plane, seat=0,
                listeners=[served.fileno()], protocol=lambda: _Guest(made),
            )  # fmt: skip
            await listening.follow(0)
            with socket.create_connection(served.getsockname()):
                await listening.drain(for_all=False)
                assert len(made) == 1
            made.pop().close()  # type: ignore[attr-defined]
            await asyncio.sleep(0)

    async def many_rounds() -> None:
        for _ in range(20):
            await one_round()

    uvloop.run(many_rounds())
