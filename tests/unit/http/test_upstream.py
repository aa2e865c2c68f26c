"""The upstream client: pooling, framing, deadlines, retries, and what a bad upstream cannot do."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.fake_env import FakeRoom
from tests.support.fake_net import Clock, FakeLoop, FakeTransport, turns
from tpo_mp.errors import BackendFailure, BackendRefused, BackendTimeout, TpoError
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.http.upstream import MAX_HEAD_BYTES, Deadlines, Origin, UpstreamExchange

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = OK + b"Content-Length: 2\r\n\r\n{}"


class Taken(UpstreamExchange):
    """Keeps what it gets, and fails on anything after the end."""

    def __init__(self, request: bytes = b"GET / HTTP/1.1\r\n\r\n") -> None:
        super().__init__(request)
        self.head: ResponseHead | None = None
        self.body = b""
        self.end: str | TpoError = ""
        self.cancel_at = -1

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """A complete answer."""
        self.started(head)
        self.body = body
        self.ended()
        self.end = "whole"

    def started(self, head: ResponseHead) -> None:
        """The head."""
        assert self.head is None
        self.head = head

    def data(self, chunk: bytes) -> None:
        """Body bytes."""
        assert self.head is not None
        assert not self.end
        self.body += chunk
        if 0 <= self.cancel_at <= len(self.body):
            self.cancel()

    def ended(self) -> None:
        """The end."""
        assert not self.end
        self.end = "ended"

    def failed(self, error: TpoError) -> None:
        """A failure."""
        assert not self.end
        self.end = error

    @property
    def reason(self) -> str:
        """Why it failed."""
        assert isinstance(self.end, TpoError), self.end
        return self.end.reason


class Net:
    """An origin and the connections to it."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.loop = FakeLoop()
        deadlines = Deadlines(connect_s=5.0, first_byte_s=10.0, idle_s=4.0, total_s=60.0)
        options = {"deadlines": deadlines, "tls": None} | options
        self.origin = Origin(
            host="up.example", port=81, loop=self.loop, wheel=clock.wheel, **options
        )  # fmt: skip

    async def send(self, exchange: Taken | None = None) -> tuple[Taken, FakeTransport]:
        """Send a request and answer its connection."""
        exchange = exchange or Taken()
        self.origin.send(exchange)
        await turns()
        assert exchange.connection is not None
        return exchange, exchange.connection.transport  # type: ignore[return-value]


Story = Callable[[Net], Awaitable[None]]


def tell(story: Story, clock: Clock, **options: Any) -> Net:
    """Run a story on a new net."""
    net = Net(clock, **options)

    async def main() -> None:
        await story(net)
        await turns()

    asyncio.run(main())
    return net


def feed(transport: FakeTransport, *reads: bytes) -> None:
    """Let the upstream say something."""
    for data in reads:
        if not transport.closing:
            transport.protocol.data_received(data)


def test_whole_answer_is_one_callback_and_the_connection_is_kept(clock: Clock) -> None:
    """The next request goes out on it."""

    async def story(net: Net) -> None:
        first, transport = await net.send(Taken(b"one"))
        feed(transport, WHOLE)
        assert (first.end, first.body) == ("whole", b"{}")
        second, same = await net.send(Taken(b"two"))
        assert same is transport
        feed(transport, WHOLE)
        assert second.end == "whole"
        assert transport.written == b"onetwo"
        assert len(net.loop.dialled) == 1

    tell(story, clock)


ANSWERS = {
    "length": (OK + b"Content-Length: 10\r\n\r\n", b"0123456789", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "204 that says chunked": (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                              b"", True),
    "no body, closes": (OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", b"", False),
    "204, closes": (b"HTTP/1.1 204 No Content\r\nConnection: Close\r\n\r\n", b"", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n",
                       b"ok", True),
    "closes": (OK + b"Connection: close\r\nContent-Length: 4\r\n\r\n", b"done", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n", b"done", False),
    "after 100 and 103": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
                          + OK + b"Content-Length: 4\r\n\r\n", b"done", True),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_is_the_same_wherever_it_is_cut(clock: Clock, name: str) -> None:
    """Every split of every framing."""
    head, body, keeps = ANSWERS[name]
    wire = head + body

    async def story(net: Net) -> None:
        for cut in range(len(wire)):
            taken, transport = await net.send()
            feed(transport, wire[:cut], wire[cut:])
            assert taken.end in ("whole", "ended"), (cut, taken.end)
            assert taken.over
            assert taken.body == (b"hello" if b"hello" in body else body)
            assert transport.closing is not keeps
            if not keeps:
                await turns()

    net = tell(story, clock)
    assert net.origin.count == (1 if keeps else 0)


def test_body_without_framing_ends_with_the_connection(clock: Clock) -> None:
    """To the end of file; a reset is a failure."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, OK + b"\r\nsome", b" more")
        assert taken.end == ""
        transport.lose()
        await turns()
        assert (taken.end, taken.body) == ("ended", b"some more")
        taken, transport = await net.send()
        feed(transport, OK + b"\r\nsome")
        transport.lose(ConnectionResetError())
        await turns()
        assert taken.reason == "cut_off"

    assert tell(story, clock).origin.count == 0


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"nonsense\r\n\r\n", "bad_upstream_head"),
        (b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", "bad_upstream_head"),
        (OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "bad_upstream_head"),
        (OK + b"Content-Length: -1\r\n\r\n{}", "bad_upstream_head"),
        (OK + b"Transfer-Encoding: gzip\r\n\r\n", "bad_upstream_head"),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", "bad_upstream_head"),
        (OK + b"X: y\r\n" * 300 + b"\r\n", "bad_upstream_head"),
        (OK + b"X: " + b"y" * (MAX_HEAD_BYTES + 10), "bad_upstream_head"),
        (OK + b"X: " + b"y" * (MAX_HEAD_BYTES + 10) + b"\r\n\r\n", "bad_upstream_head"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "bad_upstream_head"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_framing"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloworld", "bad_framing"),
    ],
)
@pytest.mark.parametrize("step", [1 << 20, 3000])
def test_upstream_that_breaks_the_rules_loses_the_connection(
    clock: Clock, wire: bytes, reason: str, step: int
) -> None:
    """And the call fails with a reason."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, *(wire[at : at + step] for at in range(0, len(wire), step)))
        assert taken.reason == reason
        assert isinstance(taken.end, BackendFailure)
        assert transport.aborted

    assert tell(story, clock).origin.count == 0


def test_stray_bytes_never_reach_the_next_caller(clock: Clock) -> None:
    """A second answer behind the first, or one nobody asked for, ends the connection."""

    async def story(net: Net) -> None:
        for wire in (WHOLE + WHOLE, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 2"):
            taken, transport = await net.send()
            feed(transport, wire)
            assert taken.end == "ended"
            assert transport.closing
            await turns()
        taken, transport = await net.send()
        feed(transport, WHOLE)
        feed(transport, WHOLE)
        assert transport.aborted
        assert net.origin.idle == []
        taken, other = await net.send()
        assert other is not transport
        feed(other, WHOLE)
        assert taken.body == b"{}"

    assert tell(story, clock).origin.count == 1


def test_stale_connection_is_retried_once(clock: Clock) -> None:
    """The server let it go before it saw the request; a fresh connection decides."""

    async def story(net: Net) -> None:
        _first, transport = await net.send()
        feed(transport, WHOLE)
        second, same = await net.send(Taken(b"again"))
        assert same is transport
        transport.lose()
        await turns()
        assert len(net.loop.dialled) == 2
        fresh = net.loop.transports[-1]
        assert fresh.written == b"again"
        fresh.lose()
        await turns()
        assert second.reason == "no_reply"
        assert len(net.loop.dialled) == 2

    assert tell(story, clock).origin.count == 0


@pytest.mark.parametrize(
    "said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 9\r\n\r\n{"]
)
def test_nothing_is_retried_once_a_byte_arrived(clock: Clock, said: bytes) -> None:
    """The upstream has the request: it may be working on it."""

    async def story(net: Net) -> None:
        _first, transport = await net.send()
        feed(transport, WHOLE)
        second, transport = await net.send()
        feed(transport, said)
        transport.lose()
        await turns()
        assert isinstance(second.end, BackendFailure)
        assert len(net.loop.dialled) == 1

    tell(story, clock)


def test_fresh_connection_that_closes_is_not_retried(clock: Clock) -> None:
    """An upstream that hangs up on a new connection means it."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        transport.lose()
        await turns()
        assert taken.reason == "no_reply"
        assert len(net.loop.dialled) == 1

    tell(story, clock)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ConnectionRefusedError(), BackendRefused, "connect_refused"),
        (OSError("no route"), BackendRefused, "connect_refused"),
        (ssl.SSLError(1, "bad certificate"), BackendRefused, "tls_failed"),
        (UnicodeError("label too long"), BackendRefused, "connect_refused"),
        (TimeoutError(), BackendTimeout, "connect_timeout"),
    ],
)
def test_connection_that_cannot_be_made(
    clock: Clock, error: Exception, kind: type[TpoError], reason: str
) -> None:
    """Refused, unreachable, untrusted or silent."""

    async def story(net: Net) -> None:
        net.loop.dial_error = error
        taken = Taken()
        net.origin.send(taken)
        await turns()
        assert isinstance(taken.end, kind)
        assert taken.reason == reason

    assert tell(story, clock).origin.count == 0


@pytest.mark.parametrize(
    ("wire", "after_s", "reason"),
    [
        (b"", 10.0, "first_byte_timeout"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 10.0, "first_byte_timeout"),
        (OK, 10.0, "first_byte_timeout"),
        (OK + b"Content-Length: 9\r\n\r\n", 4.0, "idle_timeout"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", 4.0, "idle_timeout"),
        (OK + b"\r\nab", 4.0, "idle_timeout"),
    ],
)
def test_silence_has_a_limit(clock: Clock, wire: bytes, after_s: float, reason: str) -> None:
    """Before the head, and between two reads of the body."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, wire)
        clock.advance(after_s - 0.1)
        assert taken.end == ""
        clock.advance(0.3)
        assert isinstance(taken.end, BackendTimeout)
        assert taken.reason == reason
        assert transport.aborted

    assert tell(story, clock).origin.count == 0


def test_endless_answer_has_a_limit(clock: Clock) -> None:
    """However lively it is."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, OK + b"\r\nx")
        for _ in range(59):
            clock.advance(1.0)
            feed(transport, b"x")
        assert taken.end == ""
        clock.advance(1.2)
        assert taken.reason == "total_timeout"

    tell(story, clock)


def test_paused_answer_is_not_silent(clock: Clock) -> None:
    """We asked it to wait: only the total time runs; resuming restarts the rest."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, OK + b"Content-Length: 9\r\n\r\nab")
        taken.pause()
        taken.pause()
        assert not transport.reading
        clock.advance(30)
        assert taken.end == ""
        taken.resume()
        taken.resume()
        assert transport.reading
        clock.advance(3.8)
        assert taken.end == ""
        clock.advance(0.4)
        assert taken.reason == "idle_timeout"

    tell(story, clock)


def test_connection_returns_to_the_pool_reading(clock: Clock) -> None:
    """A pause belongs to one answer, not to the connection."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, OK + b"Content-Length: 3\r\n\r\nab")
        taken.pause()
        feed(transport, b"c")
        assert taken.end == "ended"
        assert transport.reading
        taken.pause()
        taken.resume()
        assert transport.reading
        clock.advance(100)
        assert not transport.closing

    tell(story, clock)


@pytest.mark.parametrize("wire", [b"", b"HTT", OK + b"Content-Length: 9\r\n\r\nab", OK + b"\r\nab"])
def test_cancelling_hangs_up_on_the_upstream(clock: Clock, wire: bytes) -> None:
    """At any point, and nothing more is delivered."""

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, wire)
        taken.cancel()
        taken.cancel()
        assert transport.aborted
        await turns()
        assert taken.end == ""
        taken.fail(BackendFailure("late"))
        assert taken.end == ""

    assert tell(story, clock).origin.count == 0


def test_cancelling_from_inside_a_callback(clock: Clock) -> None:
    """The sink may give up while it is being fed."""

    async def story(net: Net) -> None:
        for wire in (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
                     OK + b"Content-Length: 2\r\n\r\n"):  # fmt: skip
            taken = Taken()
            taken.cancel_at = 1
            taken, transport = await net.send(taken)
            feed(transport, wire, b"ab")
            assert taken.end == ""
            assert transport.aborted
            await turns()

    assert tell(story, clock).origin.count == 0


def test_call_given_up_while_connecting_leaves_a_useful_connection(clock: Clock) -> None:
    """The next call takes it."""

    async def story(net: Net) -> None:
        gone = Taken()
        net.origin.send(gone)
        gone.cancel()
        await turns()
        assert len(net.origin.idle) == 1
        assert net.loop.transports[0].written == b""
        _taken, transport = await net.send()
        assert transport is net.loop.transports[0]

    tell(story, clock)


def test_connections_are_limited_and_calls_wait_in_turn(clock: Clock) -> None:
    """A finished call's connection serves the one that waited longest."""
    room = FakeRoom(2)

    async def story(net: Net) -> None:
        _first, transport = await net.send()
        waiting = [Taken(b"a"), Taken(b"b")]
        for exchange in waiting:
            net.origin.send(exchange)
        with pytest.raises(OverflowError):
            net.origin.send(Taken())
        assert room.places == 0
        transport.take()
        feed(transport, WHOLE)
        assert transport.take() == b"a"
        waiting[1].cancel()
        assert room.places == 2
        feed(transport, WHOLE)
        assert waiting[0].end == "whole"
        assert len(net.loop.dialled) == 1
        assert len(net.origin.idle) == 1

    tell(story, clock, max_connections=1, room=room)


def test_waiting_call_gets_a_fresh_connection_when_one_breaks(clock: Clock) -> None:
    """A broken connection's place is free again."""
    room = FakeRoom(5)

    async def story(net: Net) -> None:
        first, transport = await net.send()
        second = Taken(b"second")
        net.origin.send(second)
        transport.lose()
        await turns()
        assert first.reason == "no_reply"
        assert net.loop.transports[-1].written == b"second"
        assert room.places == 5

    assert tell(story, clock, max_connections=1, room=room).origin.count == 1


def test_idle_connections_are_limited(clock: Clock) -> None:
    """More than the pool may hold are closed after use."""

    async def story(net: Net) -> None:
        pairs = [await net.send() for _ in range(3)]
        for _, transport in pairs:
            feed(transport, WHOLE)
        assert [t.closing for _, t in pairs] == [False, False, True]

    assert tell(story, clock, max_idle=2).origin.count == 2


def test_closing_the_pool_spares_running_calls(clock: Clock) -> None:
    """Idle connections go at once, busy ones after their answer."""

    async def story(net: Net) -> None:
        busy, busy_transport = await net.send()
        _idle, idle_transport = await net.send()
        feed(idle_transport, WHOLE)
        net.origin.close()
        assert idle_transport.closing
        assert not busy_transport.closing
        feed(busy_transport, WHOLE)
        assert busy.end == "whole"
        assert busy_transport.closing

    assert tell(story, clock).origin.count == 0


@pytest.mark.parametrize(("head", "body", "kept"), ANSWERS.values(), ids=ANSWERS)
def test_a_head_that_came_before_says_the_same(
    clock: Clock, head: bytes, body: bytes, kept: bool
) -> None:
    """Its answer ends as the first one did, and whoever waits gets the connection at once."""

    async def story(net: Net) -> None:
        seen = []
        for _ in range(3):
            exchange, transport = await net.send()
            waiting = Taken(b"next")
            net.origin.send(waiting)
            feed(transport, head + body)
            await turns()
            assert waiting.connection is not None
            seen.append((exchange.end, exchange.body, transport.closing))
            feed(waiting.connection.transport, head + body)  # type: ignore[attr-defined]
            seen.append((waiting.end, waiting.body, not kept))
        assert seen == [seen[0]] * 6
        assert seen[0][2] is not kept

    tell(story, clock, max_connections=1)


def test_equal_heads_are_parsed_once(clock: Clock) -> None:
    """And thousands of different ones are not kept."""
    origin = Net(clock).origin
    raw = OK + b"\r\n"
    assert origin.head(raw) is origin.head(raw)
    for i in range(1000):
        origin.head(OK + b"X-Id: %d\r\n\r\n" % i)
    assert len(origin.known) <= 256
