"""The fast lane: framing, order, deadlines, and what a client may not do to us."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fake_net import Clock, FakeFront, HeldStream, error_code, statuses
from tests.support.wait import until
from tpo_mp.errors import RateLimited
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.fast import MAX_PIPELINED_BYTES

HOST = b"Host: a\r\n"
JSON = b"Content-Type: application/json\r\n"


class Handlers:
    """Routes that answer at once, later, never, or badly."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.waiting: list[Any] = []
        self.left = 0
        self.stream = HeldStream()

    def endpoints(self) -> list[Endpoint]:
        """The routes."""
        return [
            Endpoint("POST", "/echo", self.echo, "openai", max_body_bytes=0),
            Endpoint("GET", "/small", self.small, "openai"),
            Endpoint("POST", "/later", self.later, "openai"),
            Endpoint("POST", "/stream", self.flow, "openai"),
            Endpoint("GET", "/refuse", self.refuse, "openai"),
            Endpoint("GET", "/native", self.refuse, "native"),
            Endpoint("GET", "/broken", self.broken, "openai"),
            Endpoint("GET", "/big", self.big, "openai"),
            Endpoint("POST", "/tiny", self.echo, "openai", max_body_bytes=10),
        ]

    def echo(self, exchange: Any) -> None:
        """Send the body back."""
        self.bodies.append(exchange.body)
        exchange.respond(200, exchange.body)

    def small(self, exchange: Any) -> None:
        """A few bytes."""
        exchange.respond(200, b'{"ok":1}')

    def later(self, exchange: Any) -> None:
        """Whenever the test says so."""
        self.waiting.append(exchange)
        exchange.on_disconnect = self._gone

    def _gone(self) -> None:
        self.left += 1

    def flow(self, exchange: Any) -> None:
        """A stream the test feeds."""
        exchange.on_disconnect = self._gone
        exchange.begin(200, b"text/event-stream", b"", self.stream)
        self.stream.attach(_ToExchange(exchange))

    def refuse(self, exchange: Any) -> None:
        """An error of ours."""
        raise RateLimited("slow down", retry_after_s=2)

    def broken(self, exchange: Any) -> None:
        """A defect."""
        raise KeyError("secret detail")

    def big(self, exchange: Any) -> None:
        """More than a socket takes at once."""
        exchange.respond(200, b"x" * 100_000)


class _ToExchange:
    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange

    def data(self, chunk: bytes) -> None:
        """Pass it on."""
        self._exchange.write(chunk)

    def end(self, error: Any) -> None:
        """End the body."""
        self._exchange.finish()


@pytest.fixture
def handlers() -> Handlers:
    """Fresh handlers."""
    return Handlers()


@pytest.fixture
def front(clock: Clock, handlers: Handlers) -> FakeFront:
    """An edge over them."""
    return FakeFront(clock, handlers.endpoints())


def post(path: bytes, body: bytes, *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """A request with a body."""
    more = b"".join(line + b"\r\n" for line in lines)
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" " + version + b"\r\n" + HOST + JSON + length + more + b"\r\n" + body


def get(path: bytes = b"/small", *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """A request without one."""
    more = b"".join(line + b"\r\n" for line in lines)
    return b"GET " + path + b" " + version + b"\r\n" + HOST + more + b"\r\n"


REQUEST = post(b"/echo", b'{"a":"0123456789"}')


@pytest.mark.parametrize("cut", range(1, len(REQUEST)))
def test_request_is_whole_wherever_it_is_cut(
    front: FakeFront, handlers: Handlers, cut: int
) -> None:
    """Head and body may arrive in any two pieces."""
    client = front.connect()
    assert statuses(client.send(REQUEST[:cut])) == []
    assert statuses(client.send(REQUEST[cut:])) == [200]
    assert handlers.bodies == [b'{"a":"0123456789"}']
    assert statuses(client.send(get())) == [200]
    assert not client.closed


def test_request_byte_by_byte(front: FakeFront, handlers: Handlers) -> None:
    """The slowest honest client."""
    client = front.connect()
    assert statuses(client.send(*(REQUEST[i : i + 1] for i in range(len(REQUEST))))) == [200]
    assert len(handlers.bodies) == 1


@pytest.mark.parametrize("cut", [1, 20, 150, 300, 400])
def test_pipelined_requests_are_answered_in_order(
    front: FakeFront, handlers: Handlers, cut: int
) -> None:
    """Any number of requests in any number of reads."""
    bodies = [b'{"n":%d}' % i for i in range(20)]
    wire = b"".join(post(b"/echo", body) for body in bodies)
    client = front.connect()
    answered = client.send(*(wire[at : at + cut] for at in range(0, len(wire), cut)))
    assert statuses(answered) == [200] * 20
    assert handlers.bodies == bodies
    assert front.fast == 20


def test_next_request_waits_for_the_answer(front: FakeFront, handlers: Handlers) -> None:
    """One at a time per connection, however many were sent."""
    client = front.connect()
    assert client.send(post(b"/later", b"{}") + get() + get(b"/small")) == b""
    assert len(handlers.waiting) == 1
    handlers.waiting[0].respond(200, b"{}")
    front.loop.run()
    assert statuses(client.transport.take()) == [200, 200, 200]


def test_client_that_pipelines_too_much_is_cut_off(front: FakeFront) -> None:
    """What waits behind an open request is bounded."""
    client = front.connect()
    client.send(post(b"/later", b"{}"))
    client.send(b"x" * (MAX_PIPELINED_BYTES // 2))
    assert not client.closed
    client.send(b"x" * (MAX_PIPELINED_BYTES // 2 + 1))
    assert client.transport.aborted


def test_empty_line_before_a_request_is_forgiven(front: FakeFront) -> None:
    """Old clients send one behind a body."""
    client = front.connect()
    assert statuses(client.send(b"\r\n" + get())) == [200]


def test_head_request_gets_a_head_alone(front: FakeFront) -> None:
    """With the length a GET would have."""
    answered = front.connect().send(get().replace(b"GET", b"HEAD"))
    head, _, body = answered.partition(b"\r\n\r\n")
    assert b"content-length: 8" in head
    assert body == b""


@pytest.mark.parametrize(
    ("raw", "header", "closes"),
    [
        (get(), b"", False),
        (get(b"/small", b"Connection: close"), b"connection: close", True),
        (get(version=b"HTTP/1.0"), b"connection: close", True),
        (get(b"/small", b"Connection: keep-alive", version=b"HTTP/1.0"),
         b"connection: keep-alive", False),
    ],
)  # fmt: skip
def test_connection_is_kept_as_asked(
    front: FakeFront, raw: bytes, header: bytes, closes: bool
) -> None:
    """And the response says so where the version's default does not."""
    client = front.connect()
    answered = client.send(raw)
    assert statuses(answered) == [200]
    assert client.closed is closes
    assert (b"connection:" in answered) is bool(header)
    assert header in answered


def test_stream_is_chunked(front: FakeFront, handlers: Handlers) -> None:
    """One chunk per write, then the last chunk, then the next request."""
    client = front.connect()
    written = client.send(post(b"/stream", b"{}") + get())
    handlers.stream.data(b"abc")
    handlers.stream.data(b"d" * 16)
    handlers.stream.end()
    front.loop.run()
    written += client.transport.take()
    assert b"\r\n\r\n3\r\nabc\r\n10\r\n" + b"d" * 16 + b"\r\n0\r\n\r\nHTTP/1.1 200" in written
    assert statuses(written) == [200, 200]


def test_stream_to_an_old_client_ends_with_the_connection(
    front: FakeFront, handlers: Handlers
) -> None:
    """HTTP/1.0 knows no chunks."""
    client = front.connect()
    asked = post(b"/stream", b"{}", b"Connection: keep-alive", version=b"HTTP/1.0")
    written = client.send(asked)
    handlers.stream.data(b"abc")
    handlers.stream.end()
    head, _, body = (written + client.transport.take()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"abc"
    assert client.closed


def test_client_that_leaves_is_reported_once(front: FakeFront, handlers: Handlers) -> None:
    """By a half-close or a reset, in mid-stream or before the answer."""
    for path in (b"/later", b"/stream"):
        client = front.connect()
        client.send(post(path, b"{}"))
        client.leave()
        client.transport.lose()
    assert handlers.left == 2
    assert not front.edge.connections


def test_client_that_leaves_between_requests_is_nobodys_loss(
    front: FakeFront, handlers: Handlers
) -> None:
    """Nothing is cancelled that was answered."""
    client = front.connect()
    client.send(post(b"/later", b"{}"))
    handlers.waiting[0].respond(200, b"{}")
    client.leave()
    assert handlers.left == 0
    assert not front.edge.connections


def test_source_is_paused_while_the_client_reads_slowly(
    front: FakeFront, handlers: Handlers
) -> None:
    """Back-pressure reaches the upstream, both ways."""
    client = front.connect()
    client.send(post(b"/stream", b"{}"))
    client.transport.stuck = True
    handlers.stream.data(b"x" * 70_000)
    assert handlers.stream.told == ["pause"]
    client.transport.unstick()
    assert handlers.stream.told == ["pause", "resume"]


def test_slow_reader_is_cut_off(clock: Clock, front: FakeFront, handlers: Handlers) -> None:
    """A client that takes nothing for long loses its connection, and its call."""
    client = front.connect()
    client.send(post(b"/stream", b"{}"))
    client.transport.stuck = True
    handlers.stream.data(b"x" * 70_000)
    clock.advance(29.9)
    assert not client.closed
    clock.advance(0.3)
    assert client.transport.aborted
    front.loop.run()
    assert handlers.left == 1


def test_client_that_never_reads_cannot_ask_on(clock: Clock, front: FakeFront) -> None:
    """Its answers would pile up in memory; its requests wait, then it goes."""
    client = front.connect()
    client.transport.stuck = True
    for _ in range(50):
        client.send(get(b"/big"))
    assert client.transport.unsent < 110_000
    client.transport.unstick()
    client.transport.stuck = True
    front.loop.run()
    assert client.transport.unsent < 110_000
    clock.advance(31)
    assert client.transport.aborted


def test_requests_behind_unread_answers_go_on_when_they_are_read(front: FakeFront) -> None:
    """Nothing is lost by waiting."""
    client = front.connect()
    client.transport.stuck = True
    written = client.send(get(b"/big") + get(), get())
    client.transport.unstick()
    front.loop.run()
    assert statuses(written + client.transport.take()) == [200, 200, 200]


def test_answer_that_closes_is_not_waited_for_for_ever(clock: Clock, front: FakeFront) -> None:
    """The last bytes of a closing connection have a deadline too."""
    client = front.connect()
    client.transport.stuck = True
    client.send(get(b"/big", b"Connection: close"))
    assert client.closed
    assert not client.transport.lost
    clock.advance(30.2)
    assert client.transport.aborted


def test_first_head_has_a_deadline(clock: Clock, front: FakeFront) -> None:
    """A connection that says nothing, or only half a head, is closed."""
    silent, slow = front.connect(), front.connect()
    slow.send(b"GET /sm")
    clock.advance(9.9)
    assert not silent.closed
    assert not slow.closed
    clock.advance(0.3)
    assert silent.closed
    assert statuses(slow.transport.take()) == [408]
    assert slow.closed


@pytest.mark.parametrize("before", [get(), get(b"/nowhere")])
def test_later_heads_have_a_deadline_from_their_first_byte(
    clock: Clock, front: FakeFront, before: bytes
) -> None:
    """Dripping a byte now and then buys no time."""
    client = front.connect()
    client.send(before)
    clock.advance(30)
    for byte in get(b"/small", b"X-Slow: " + b"y" * 100)[:19]:
        client.send(bytes([byte]))
        clock.advance(0.5)
    assert not client.closed
    client.send(b"y")
    clock.advance(1.2)
    assert statuses(client.transport.take()) == [408]


def test_body_has_a_deadline(clock: Clock, front: FakeFront, handlers: Handlers) -> None:
    """Absolute, whatever drips in."""
    client = front.connect()
    client.send(post(b"/echo", b"x" * 1000)[:-900])
    for _ in range(59):
        client.send(b"x")
        clock.advance(0.5)
    assert not client.closed
    clock.advance(1.0)
    assert statuses(client.transport.take()) == [408]
    assert client.closed
    assert handlers.bodies == []


def test_idle_connection_is_closed_in_time(clock: Clock, front: FakeFront) -> None:
    """75 s after the last answer."""
    client = front.connect()
    client.send(get())
    clock.advance(60)
    client.send(get())
    clock.advance(74.9)
    assert not client.closed
    clock.advance(0.3)
    assert client.closed


def test_open_request_has_no_deadline_here(
    clock: Clock, front: FakeFront, handlers: Handlers
) -> None:
    """How long an answer may take is the call's affair."""
    client = front.connect()
    client.send(post(b"/later", b"{}"))
    clock.advance(400)
    assert not client.closed
    handlers.waiting[0].respond(200, b"{}")
    clock.advance(76)
    assert client.closed


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"hello\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /" + b"a" * 17_000, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (get(version=b"HTTP/2.0"), 505),
        (get(b"http://evil.example/"), 400),
    ],
)
def test_bytes_that_cannot_be_trusted_end_the_connection(
    front: FakeFront, handlers: Handlers, raw: bytes, status: int
) -> None:
    """One answer, then nothing more is read from it."""
    client = front.connect()
    assert statuses(client.send(raw + get())) == [status]
    assert client.closed
    assert front.bad == 1
    assert front.fast == 0


def test_refused_request_does_not_end_the_connection(front: FakeFront) -> None:
    """Its body is skipped when it is at hand, and the next request is served."""
    client = front.connect()
    wire = post(b"/nowhere", b"{}") + get(b"/nowhere") + post(b"/small", b"{}") + get()
    assert statuses(client.send(wire)) == [404, 404, 405, 200]
    assert not client.closed


def test_refusal_does_not_wait_for_the_body(front: FakeFront) -> None:
    """A body that is still to come would be read as the next request: the connection closes."""
    client = front.connect()
    answered = client.send(post(b"/nowhere", b"x" * 5000)[:-10])
    assert statuses(answered) == [404]
    assert b"connection: close" in answered
    assert client.closed


def test_body_over_the_limit_is_refused_by_its_length(front: FakeFront, handlers: Handlers) -> None:
    """Before a byte of it is read; each route has its own limit."""
    client = front.connect()
    assert statuses(client.send(post(b"/tiny", b"x" * 11))) == [413]
    assert client.closed
    assert statuses(front.connect().send(post(b"/echo", b"x" * ((1 << 20) + 1))[:200])) == [413]
    assert handlers.bodies == []


def test_refused_head_is_remembered_unharmed(front: FakeFront) -> None:
    """Closing one request's connection says nothing about the next one's."""
    raw = post(b"/nowhere", b"{}")
    assert statuses(front.connect().send(raw[:-1])) == [404]
    client = front.connect()
    assert b"connection: close" not in client.send(raw)
    assert not client.closed


def test_errors_are_answered_in_the_familys_dialect(front: FakeFront) -> None:
    """With status, retry headers and the client's own id."""
    client = front.connect()
    answered = client.send(get(b"/refuse", b"X-Request-Id: r-7"))
    assert statuses(answered) == [429]
    assert b"retry-after: 2\r\n" in answered
    assert b"x-request-id: r-7\r\n" in answered
    assert b'"type":"rate_limit_error"' in answered
    native = client.send(get(b"/native"))
    assert b'"retry_after_ms":2000' in native
    assert error_code(native) == b"rate_limited"


def test_defect_answers_500_without_detail(front: FakeFront) -> None:
    """The connection lives, the log knows, the client does not."""
    client = front.connect()
    answered = client.send(get(b"/broken"))
    assert statuses(answered) == [500]
    assert b"secret" not in answered
    assert isinstance(front.crashes[0], KeyError)
    assert statuses(client.send(get())) == [200]


@pytest.mark.parametrize(
    "line", [b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: websocket"]
)
def test_what_needs_a_whole_server_moves_with_its_bytes(front: FakeFront, line: bytes) -> None:
    """After the earlier answers, unread, and with nothing of ours left behind."""
    client = front.connect()
    raw = b"POST /echo HTTP/1.1\r\n" + HOST + JSON + line + b"\r\n\r\nrest"
    assert statuses(client.send(get() + raw)) == [200]
    assert front.moved == [(client.transport, raw)]
    assert client.protocol not in front.edge.connections
    assert client.protocol.deadline == float("inf")


def test_draining_lets_open_requests_finish(front: FakeFront, handlers: Handlers) -> None:
    """Then the connection closes, and says so."""
    busy, idle = front.connect(), front.connect()
    idle.send(get())
    busy.send(post(b"/later", b"{}"))
    front.edge.drain(0.0)
    assert idle.closed
    assert not busy.closed
    handlers.waiting[0].respond(200, b"{}")
    assert b"connection: close" in busy.transport.take()
    assert busy.closed


def test_draining_lingers_for_requests_on_their_way(clock: Clock, front: FakeFront) -> None:
    """A client that is just sending gets its answer; a silent one is closed."""
    asking, silent = front.connect(), front.connect()
    for client in (asking, silent):
        client.send(get())
    front.edge.drain(1.0)
    assert statuses(asking.send(get())) == [200]
    assert asking.closed
    clock.advance(1.2)
    assert silent.closed


def test_connections_just_opened_have_time_for_their_first_request(
    clock: Clock, front: FakeFront
) -> None:
    """As much as a drain grants them, and no more than any head has."""
    asking, silent = front.connect(), front.connect()
    front.edge.drain(0.2, fresh_s=1.0)
    clock.advance(0.5)
    assert statuses(asking.send(get())) == [200]
    assert not silent.closed
    clock.advance(0.7)
    assert silent.closed
    late = front.connect()  # its handshake was under way
    clock.advance(1.2)
    assert late.closed
    front.edge.drain(0.2)
    patient = front.connect()
    front.edge.drain(0.2)
    clock.advance(5.0)
    assert not patient.closed


def test_connection_retires_after_many_requests(front: FakeFront) -> None:
    """So that load finds new shards."""
    front.edge.max_requests = 3
    client = front.connect()
    assert statuses(client.send(get() + get() + get() + get())) == [200, 200, 200]
    assert client.closed


def test_handler_that_waits_is_adopted(clock: Clock) -> None:
    """A coroutine answers when it can; its error is answered; leaving cancels it."""

    async def main() -> list[str]:
        ends: list[str] = []
        go = asyncio.Event()

        async def wait(exchange: Any) -> None:
            try:
                await go.wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
            if exchange.head.query == b"fail":
                raise RateLimited("no")
            exchange.respond(200, b"{}")

        front = FakeFront(clock, [Endpoint("GET", "/wait", wait, "openai")])
        clients = [front.connect() for _ in range(3)]
        for client, target in zip(clients, (b"/wait", b"/wait?fail", b"/wait"), strict=True):
            client.send(get(target))
        await asyncio.sleep(0)
        clients[2].leave()
        go.set()
        for client, status in ((clients[0], 200), (clients[1], 429)):
            said = await until(client.transport.take, what="an answer")
            assert statuses(said) == [status]
        assert clients[2].transport.take() == b""
        return ends

    assert asyncio.run(main()) == ["cancelled"]
