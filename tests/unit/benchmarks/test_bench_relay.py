"""The bare relay copies bytes both ways and keeps its upstream connections."""

from benchmarks.relay import Back, Front
from tests.unit.benchmarks.fakes import FakeTransport

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def pair() -> tuple[Front, FakeTransport, Back, FakeTransport, list[Back]]:
    """A front whose first request opens one back."""
    idle: list[Back] = []
    back = Back(idle)
    back_wire, front_wire = FakeTransport(), FakeTransport()
    back.connection_made(back_wire)
    front = Front(idle, lambda front, request: front.send(back, request))
    front.connection_made(front_wire)
    return front, front_wire, back, back_wire, idle


def test_request_and_reply_are_copied_and_the_connection_is_kept():
    """Bytes are untouched, and the next request takes the same upstream connection."""
    front, front_wire, back, back_wire, idle = pair()
    for _ in range(2):
        front.data_received(REQUEST)
        assert idle == []
        back.data_received(REPLY)
        assert idle == [back]
    assert back_wire.sent == REQUEST * 2
    assert front_wire.sent == REPLY * 2


def test_split_request_is_sent_once_it_is_whole():
    """Nothing reaches the upstream before the body is complete."""
    front, _, _, back_wire, _ = pair()
    front.data_received(REQUEST[:40])
    assert back_wire.sent == b""
    front.data_received(REQUEST[40:])
    assert back_wire.sent == REQUEST


def test_stream_is_forwarded_as_it_arrives():
    """Every read is one write, and the connection is kept after the last chunk only."""
    front, front_wire, back, _, idle = pair()
    front.data_received(REQUEST)
    for piece in (STREAM, b"3\r\nabc\r\n", b"0\r\n\r\n"):
        assert idle == []
        back.data_received(piece)
    assert idle == [back]
    assert front_wire.written == [STREAM, b"3\r\nabc\r\n", b"0\r\n\r\n"]


def test_client_that_leaves_takes_its_upstream_connection_with_it():
    """An unfinished reply never reaches the next client."""
    front, _, back, back_wire, idle = pair()
    front.data_received(REQUEST)
    front.connection_lost(None)
    assert back_wire.closed
    assert back.front is None
    assert idle == []


def test_upstream_that_breaks_off_closes_the_client():
    """The relay has no errors of its own."""
    front, front_wire, back, _, _ = pair()
    front.data_received(REQUEST)
    back.connection_lost(None)
    assert front_wire.closed


def test_idle_upstream_connection_that_closes_is_forgotten():
    """A closed connection is never handed out."""
    front, front_wire, back, _, idle = pair()
    front.data_received(REQUEST)
    back.data_received(REPLY)
    back.connection_lost(None)
    assert idle == []
    assert not front_wire.closed
