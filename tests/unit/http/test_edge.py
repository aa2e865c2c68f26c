"""What client connections share: refusals without a family, drain, counts."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_net import Clock, EdgeLimits, FakeFront, statuses
from tpo_mp.http.endpoints import Endpoint, EndpointTable


@pytest.fixture
def front(clock: Clock) -> FakeFront:
    """An edge with one route."""
    return FakeFront(
        clock, [Endpoint("GET", "/a", lambda exchange: exchange.respond(200, b"{}"), "openai")]
    )


GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("status", [400, 408, 414, 417, 431, 505])
def test_refusal_is_one_whole_closing_response(front: FakeFront, status: int) -> None:
    """Machine-readable, dated, and final."""
    raw = front.edge.bad_request(status, 'why "quoted"')
    assert statuses(raw) == [status]
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"date: " in head
    assert json.loads(body)["error"]["message"] == 'why "quoted"'


def test_new_routes_are_served_at_once(front: FakeFront) -> None:
    """No head remembered for the old table survives it."""
    client = front.connect()
    assert statuses(client.send(GET)) == [200]
    front.edge.use(EndpointTable([]))
    assert statuses(client.send(GET)) == [404]


def test_new_limits_hold_for_new_requests(front: FakeFront) -> None:
    """A reload changes what the next request may be."""
    client = front.connect()
    assert statuses(client.send(GET)) == [200]
    front.edge.configure(EdgeLimits(max_header_bytes=20), None)
    front.edge.use(front.edge.table)
    assert statuses(client.send(GET)) == [431]


def test_open_connections_of_both_lanes_are_counted(front: FakeFront) -> None:
    """A drain waits for all of them."""
    clients = [front.connect() for _ in range(3)]
    front.edge.count_full_lane = lambda: 2
    assert front.edge.open_connections == 5
    for client in clients:
        client.leave()
    assert front.edge.open_connections == 2


def test_full_lane_is_drained_too(front: FakeFront) -> None:
    """The other lane is told."""
    told: list[bool] = []
    front.edge.drain_full_lane = lambda: told.append(True)
    front.edge.drain(0.0)
    assert told == [True]
    assert front.edge.closing


def test_every_response_is_dated(front: FakeFront) -> None:
    """By the beat, not by the request."""
    front.edge.plain_date = b"date: then\r\n"
    assert b"date: then\r\n" in front.connect().send(GET)
    front.edge.tick()
    assert b"GMT\r\n" in front.connect().send(GET)
