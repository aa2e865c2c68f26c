"""Requests counted by method, route and status, on either lane."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fake_net import Clock, FakeFront, FakeTransport, HeldStream
from tests.support.wait import until
from tpo_mp.errors import RateLimited
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.full import FullLane
from tpo_mp.http.tally import DURATION, REQUESTS
from tpo_mp.shm.metrics import MAX_LABEL_VALUES, OTHER

HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%b\r\n\r\n"
FRAMED = {"fast": (b"Content-Length: 2", b"{}"),
          "full": (b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")}  # fmt: skip


class Handlers:
    """Routes that answer, refuse, stream, wait, and cut."""

    def __init__(self) -> None:
        self.open: Any = None

    def endpoints(self) -> list[Endpoint]:
        """The routes."""
        routes = {
            "/good": lambda e: e.respond(200, b"{}"), "/refuse": self.refuse,
            "/stream": self.stream, "/later": self.later, "/cut": lambda e: e.abort(),
            "/things/{name}": lambda e: e.respond(201, b"{}"),
        }  # fmt: skip
        return [Endpoint("POST", path, made, "openai") for path, made in routes.items()]

    def refuse(self, exchange: Any) -> None:
        """An error of ours."""
        raise RateLimited("slow down", retry_after_s=2)

    def stream(self, exchange: Any) -> None:
        """Begin, and let the test go on."""
        exchange.begin(200, b"text/event-stream", b"", HeldStream())
        self.open = exchange

    def later(self, exchange: Any) -> None:
        """Never answer."""
        exchange.on_disconnect = lambda: None
        self.open = exchange


class Counted:
    """A front whose page of metrics is read as text labels to values."""

    def __init__(self, clock: Clock) -> None:
        self.handlers = Handlers()
        self.front = FakeFront(clock, self.handlers.endpoints())

    def page(self, name: str) -> dict[tuple[str, ...], float]:
        """Values by their labels in order of name: method, path, status."""
        families = {family.name: family for family in self.front.arena.collect()}
        found = families[name].samples if name in families else ()
        return {tuple(v for _, v in sample.labels): sample.value for sample in found}

    @property
    def requests(self) -> dict[tuple[str, ...], float]:
        """The counter."""
        return {labels: n for labels, n in self.page(REQUESTS).items() if n}


@pytest.fixture
def counted(clock: Clock) -> Counted:
    """A front."""
    return Counted(clock)


def raw(path: bytes, lane: str = "fast") -> bytes:
    """A request of that lane."""
    line, body = FRAMED[lane]
    return HEAD % (path, line) + body


def test_a_request_is_counted_by_method_route_and_status(counted: Counted) -> None:
    """Names in a path are the template's, an unknown path is "other", a HEAD is one."""
    client = counted.front.connect()
    for path in (b"/good", b"/good", b"/refuse", b"/things/a", b"/things/b", b"/nowhere"):
        client.send(raw(path))
    client.send(b"BREW /good HTTP/1.1\r\nHost: a\r\n\r\n")
    assert counted.requests == {
        ("POST", "/good", "200"): 2, ("POST", "/refuse", "429"): 1,
        ("POST", "/things/{name}", "201"): 2, ("POST", OTHER, "404"): 1,
        (OTHER, OTHER, "400"): 1,
    }  # fmt: skip
    assert sum(counted.page(DURATION).values()) == 6  # a head that is none has no time


def test_a_stream_counts_once_and_its_time_is_all_of_it(counted: Counted, clock: Clock) -> None:
    """Not when its head leaves."""
    client = counted.front.connect()
    client.send(raw(b"/stream"))
    assert not counted.requests
    clock.now += 3.0
    counted.handlers.open.write(b"data: x\n\n")
    counted.handlers.open.finish()
    assert counted.requests == {("POST", "/stream", "200"): 1}
    (family,) = (f for f in counted.front.arena.collect() if f.name == DURATION)
    assert [sample.sum for sample in family.samples if sample.value] == [3.0]


def test_who_leaves_and_what_is_cut_count_too(counted: Counted) -> None:
    """Before a head was sent, and after."""
    for path in (b"/later", b"/stream"):
        client = counted.front.connect()
        client.send(raw(path))
        client.leave()
    counted.front.connect().send(raw(b"/cut"))
    counted.front.connect().send(raw(b"/stream"))
    counted.handlers.open.abort()
    assert counted.requests == {
        ("POST", "/later", "499"): 1, ("POST", "/stream", "200"): 2, ("POST", "/cut", "none"): 1,
    }  # fmt: skip


def test_the_full_lane_counts_the_same(counted: Counted) -> None:
    """Each path once more, chunked."""

    async def main() -> None:
        full = FullLane(counted.front.edge)
        for n, path in enumerate((b"/good", b"/refuse", b"/things/a", b"/nowhere", b"/cut")):
            transport = FakeTransport(asyncio.get_running_loop().call_soon)
            full.take_over(transport, raw(path, "full"))  # type: ignore[arg-type]
            await until(lambda n=n: sum(counted.requests.values()) > n)  # type: ignore[misc]
            transport.lose()

    asyncio.run(main())
    assert counted.requests == {
        ("POST", "/good", "200"): 1, ("POST", "/refuse", "429"): 1, ("POST", OTHER, "404"): 1,
        ("POST", "/things/{name}", "201"): 1, ("POST", "/cut", "none"): 1,
    }  # fmt: skip


def test_nobody_can_take_a_route_s_name_from_the_page(clock: Clock) -> None:
    """However many routes there are, and whoever asks for which of them first."""
    routes = [Endpoint("GET", f"/r{n}", lambda e: e.respond(200, b"{}"), "ops")
              for n in range(2 * MAX_LABEL_VALUES)]  # fmt: skip
    front = FakeFront(clock, routes)
    client = front.connect()
    for n in range(len(routes)):
        client.send(b"GET /r%d HTTP/1.1\r\nHost: a\r\n\r\n" % n)
    (family,) = (f for f in front.arena.collect() if f.name == REQUESTS)
    assert {dict(sample.labels)["path"] for sample in family.samples} == {
        route.template for route in routes
    }
