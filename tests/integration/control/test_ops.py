"""The ops port's bounds: slow and many connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from tpo_mp.control import ops as module
from tpo_mp.control.ops import OpsPort
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import Plane


def serving(test: Callable[[int], Awaitable[None]], lifetime_s: float = 60.0) -> None:
    """Run a test against an ops port."""
    plane, arena = Plane.create(1, 4, bytes(16)), MetricsArena.create(4)

    async def main() -> None:
        port = OpsPort(plane, arena, lambda: {"rag": 1})
        listener = socket.create_server(("127.0.0.1", 0))
        await port.start(listener, lifetime_s=lifetime_s)
        try:
            await asyncio.wait_for(test(listener.getsockname()[1]), 20.0)
        finally:
            await port.close()

    asyncio.run(main())
    plane.close()
    arena.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /live HT", b"GET /live HTTP/1.1\r\nHost: x\r\nX: "], ids=len
)
def test_a_connection_ends_however_slowly_it_is_fed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, half a line, half a head: closed when its time is over."""
    monkeypatch.setattr(module, "GRACE_S", 0.1)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    serving(test, lifetime_s=0.2)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the cap a connection is closed at once; those open go on."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 5)

    async def test(port: int) -> None:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for reader, writer in pairs:
            writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        extra, closing = await asyncio.open_connection("127.0.0.1", port)
        assert await extra.read() == b""
        for _, writer in [*pairs, (extra, closing)]:
            writer.close()

    serving(test)


def test_a_big_request_is_refused() -> None:
    """There is nothing to upload here."""

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert b"405" in await reader.readline()
        writer.close()

    serving(test)


def test_a_defect_is_told_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 without detail; what went wrong reaches the loop's handler, a client's noise does not."""
    told: list[str] = []

    def broken(*_: object) -> bytes:
        raise KeyError("secret")

    monkeypatch.setattr(module.prometheus, "render", broken)

    async def test(port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
        for request in (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"secret" not in head
            assert b"Server:" not in head
            writer.close()

    serving(test)
    assert told == ["KeyError('secret')"]


@pytest.mark.parametrize(("request_line", "status"), [(b"GET /none", 404), (b"PUT /live", 405)])
def test_other_requests_are_refused(request_line: bytes, status: int) -> None:
    """Pages are read, by their names."""

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" %d " % status in await reader.readline()
        writer.close()

    serving(test)
