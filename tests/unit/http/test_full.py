"""The full lane: the same handlers behind aiohttp, for what the fast lane leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.fake_net import Clock, FakeFront, FakeTransport, HeldStream, statuses
from tests.support.wait import until
from tpo_mp.errors import RateLimited
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.full import FullLane

HEAD = (
    b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
BODY = b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n'


class Lane:
    """A full lane over a few handlers, and one connection to it."""

    def __init__(self, clock: Clock, **limits: Any) -> None:
        self.bodies: list[bytes] = []
        self.stream = HeldStream()
        self.left = 0
        self.front = FakeFront(
            clock,
            [
                Endpoint("POST", "/echo", self.echo, "openai", max_body_bytes=64),
                Endpoint("POST", "/stream", self.flow, "openai"),
                Endpoint("POST", "/later", self.later, "openai"),
                Endpoint("POST", "/refuse", self.refuse, "openai"),
                Endpoint("POST", "/broken", self.broken, "openai"),
                Endpoint("POST", "/wait", self.wait, "openai"),
            ],
            **limits,
        )
        self.full = FullLane(self.front.edge)
        self.transport = FakeTransport(asyncio.get_running_loop().call_soon)

    def echo(self, exchange: Any) -> None:
        """Send the body back."""
        self.bodies.append(exchange.body)
        exchange.respond(200, exchange.body, extra=b"x-own: 1\r\n")

    def flow(self, exchange: Any) -> None:
        """A stream the test feeds."""
        exchange.on_disconnect = self._gone
        exchange.begin(200, b"text/event-stream", b"", self.stream)
        self.stream.attach(_ToExchange(exchange))

    def later(self, exchange: Any) -> None:
        """Never answers."""
        exchange.on_disconnect = self._gone

    def _gone(self) -> None:
        self.left += 1

    def refuse(self, exchange: Any) -> None:
        """An error of ours."""
        raise RateLimited("slow down", retry_after_s=2)

    def broken(self, exchange: Any) -> None:
        """A defect."""
        raise KeyError("secret")

    async def wait(self, exchange: Any) -> None:
        """Answers a turn later."""
        await asyncio.sleep(0)
        exchange.respond(202, b"{}")

    async def send(self, *reads: bytes) -> bytes:
        """Take the connection over with the first read, then read on."""
        self.front.edge.to_full_lane(self.transport, reads[0])  # type: ignore[arg-type]
        for data in reads[1:]:
            self.transport.protocol.data_received(data)
        return await self.settle()

    async def settle(self) -> bytes:
        """Let it work; answer what was written."""
        for _ in range(30):
            await asyncio.sleep(0)
        return self.transport.take()


class _ToExchange:
    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange

    def data(self, chunk: bytes) -> None:
        """Pass it on."""
        self._exchange.write(chunk)

    def end(self, error: Any) -> None:
        """End the body."""
        self._exchange.finish()


def tell(clock: Clock, story: Callable[[Lane], Awaitable[None]], **limits: Any) -> Lane:
    """Run a story on a new lane."""

    async def main() -> Lane:
        lane = Lane(clock, **limits)
        await story(lane)
        lane.transport.lose()
        await lane.settle()
        return lane

    return asyncio.run(main())


@pytest.mark.parametrize("cut", [0, 1, 4, 9, 20])
def test_chunked_body_reaches_the_same_handler(clock: Clock, cut: int) -> None:
    """Whole, and answered with the handler's own headers."""

    async def story(lane: Lane) -> None:
        head = HEAD % b"/echo"
        pieces = [head + BODY[:cut], BODY[cut:]] if cut else [head + BODY]
        answered = await lane.send(*pieces)
        assert statuses(answered) == [200]
        assert b"x-own: 1" in answered.lower()
        assert answered.endswith(b'{"a":1}')
        assert lane.bodies == [b'{"a":1}']
        assert lane.front.full == 1

    tell(clock, story)


def test_expecting_client_is_told_to_go_on(clock: Clock) -> None:
    """``100 Continue`` first, and only for a request that will be read."""

    async def story(lane: Lane) -> None:
        head = HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: 2")
        head = head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % b"/echo"
        assert await lane.send(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
        lane.transport.protocol.data_received(b"{}")
        assert statuses(await lane.settle()) == [200]

    async def refused(lane: Lane) -> None:
        head = HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % b"/nowhere"
        answered = await lane.send(head)
        assert b"100 Continue" not in answered
        assert b" 404 " in answered

    tell(clock, story)
    tell(clock, refused)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (b"/nowhere", BODY, 404),
        (b"/echo", b"41\r\n" + b"x" * 65 + b"\r\n0\r\n\r\n", 413),
        (b"/echo", b"zz\r\n", 400),
        (b"/refuse", BODY, 429),
        (b"/broken", BODY, 500),
        (b"/wait", BODY, 202),
    ],
)
def test_answers_are_the_fast_lanes(clock: Clock, path: bytes, body: bytes, status: int) -> None:
    """Statuses, limits and silence about defects are the same; the connection closes."""

    async def story(lane: Lane) -> None:
        answered = await lane.send(HEAD % path + body)
        assert b" %d " % status in answered.split(b"\r\n")[0]
        assert b"secret" not in answered

    lane = tell(clock, story)
    assert bool(lane.front.crashes) == (status == 500)


def test_stream_is_carried_with_back_pressure(clock: Clock) -> None:
    """What is queued is bounded by pausing the source."""

    async def story(lane: Lane) -> None:
        await lane.send(HEAD % b"/stream" + BODY)
        lane.stream.data(b"x" * 70_000)
        assert lane.stream.told == ["pause"]
        await lane.settle()
        assert lane.stream.told == ["pause", "resume"]
        lane.stream.data(b"last")
        lane.stream.end()
        written = await lane.settle()
        assert written.endswith(b"4\r\nlast\r\n0\r\n\r\n")

    tell(clock, story)


@pytest.mark.parametrize("path", [b"/stream", b"/later"])
def test_client_that_leaves_is_reported_once(clock: Clock, path: bytes) -> None:
    """Whatever its request waits for."""

    async def story(lane: Lane) -> None:
        await lane.send(HEAD % path + BODY)
        lane.transport.lose()
        await lane.settle()
        assert lane.left == 1

    tell(clock, story)


def test_slow_reader_is_cut_off(clock: Clock) -> None:
    """The call is told, and the connection goes."""

    async def story(lane: Lane) -> None:
        await lane.send(HEAD % b"/stream" + BODY)
        lane.transport.stuck = True
        lane.stream.data(b"x" * 100_000)
        await until(lambda: lane.left, what="word that the client is gone")
        assert lane.left == 1
        assert lane.transport.aborted

    tell(clock, story, slow_reader_s=0.02)


def test_slow_body_is_refused(clock: Clock) -> None:
    """The body's deadline is the fast lane's."""

    async def story(lane: Lane) -> None:
        written = await lane.send(HEAD % b"/echo" + b"5\r\nab")
        written += await until(
            lambda: written or lane.transport.take(), what="the refusal of the body"
        )
        assert b" 408 " in written.split(b"\r\n")[0]

    tell(clock, story, body_timeout_s=0.02)


def test_endless_small_chunks_are_refused(clock: Clock) -> None:
    """Ten thousand chunks of a byte are an attack on the parser."""

    async def story(lane: Lane) -> None:
        written = await lane.send(HEAD % b"/stream" + b"1\r\nx\r\n" * 10_100 + b"0\r\n\r\n")
        for _ in range(200):
            if written:
                break
            written = await lane.settle()
        assert b" 400 " in written.split(b"\r\n")[0]

    tell(clock, story)
