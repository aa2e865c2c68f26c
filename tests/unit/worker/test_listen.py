"""Which listeners a shard accepts on: its own, a silent neighbour's, none while it cannot."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

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
        await door.listening.follow()
        assert door.opened == door.fds[:1]
        assert door.listening.accepting
        await door.listening.follow()
        assert len(door.opened) == 1
        door.host.plane.set_slot(1, seat=1, acceptor=0)
        await door.listening.follow()
        assert door.opened == door.fds
        door.host.plane.set_slot(1, seat=1, acceptor=1)
        await door.listening.follow()
        assert door.closed == door.fds[1:]
        door.listening.close()

    tell(story)


@pytest.mark.parametrize("for_all", [False, True])
def test_draining_lets_go_of_everything(
    door: Door, monkeypatch: pytest.MonkeyPatch, for_all: bool
) -> None:
    """For this process or for the host; it follows again if it is told to."""
    ended: list[int] = []
    monkeypatch.setattr(listen, "_refuse", ended.append)

    async def story() -> None:
        await door.listening.follow()
        await door.listening.drain(for_all=for_all)
        assert ended == (door.fds[:1] if for_all else [])
        assert door.closed == door.fds[:1]
        assert not door.listening.accepting
        await door.listening.follow()
        assert door.listening.accepting
        door.listening.close()

    tell(story)


def test_closing_gives_the_descriptors_back(door: Door) -> None:
    """This process's copies; twice is no error."""
    door.listening.close()
    for fd in door.fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    door.listening.close()


def test_few_descriptors_pause_accepting(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait in the kernel; with room again they are taken."""
    lowest = os.dup(door.fds[0])
    os.close(lowest)
    room = RESERVED_FDS * 4
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (lowest + room, 0))

    async def story() -> None:
        nonlocal room
        await door.listening.follow()
        door.listening.tick()
        assert door.warned == []
        room = RESERVED_FDS - 1
        door.listening._accepted()
        assert len(door.soon) == 1
        door.soon.pop()()
        assert door.warned == ["accepting_paused"]
        assert not door.listening.accepting
        door.listening.tick()
        await door.listening.follow()
        assert not door.listening.accepting
        room = RESERVED_FDS * 4
        door.listening.tick()
        await door.listening.follow()
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
