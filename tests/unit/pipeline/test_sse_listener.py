"""A client that reads events: ids, heartbeats, the end of its response."""

from __future__ import annotations

from typing import Any

from tests.support.fake_gateway import FakeExchange, fake_feeds
from tpo_mp.http.head import Head
from tpo_mp.pipeline.feed import UNNUMBERED
from tpo_mp.pipeline.sse_listener import MAX_EXPECTED, SseListener

CALL = "00000000-0001-8000-8000-000000000000"


def listen(**options: Any) -> tuple[SseListener, FakeExchange]:
    """A listener on an exchange that records."""
    exchange = FakeExchange(Head())
    return SseListener(fake_feeds(heartbeat_s=3), exchange, **options), exchange


def test_events_have_names_ids_and_data() -> None:
    """The response begins with the first, and ends with the last."""
    listener, exchange = listen(lines=b"x-own: 1\r\n")
    assert exchange.status == 0
    listener.take(CALL, 0, "start", b"{}")
    assert exchange.status == 200
    assert exchange.extra.startswith(b"x-own: 1\r\n")
    assert exchange.answer == b"event: start\nid: %b:0\ndata: {}\n\n" % CALL.encode()
    listener.take(CALL, UNNUMBERED, "error", b"{}")
    assert exchange.answer.endswith(b"\n\nevent: error\ndata: {}\n\n")
    assert exchange.ended
    assert listener.sent_bytes == len(exchange.answer)
    listener.take(CALL, 1, "token", b"{}")
    listener.finish()
    assert listener.over


def test_sessions_have_no_last_event() -> None:
    """Nor do they hear anything twice, not even what was told before they came back."""
    listener, exchange = listen(whole=False)
    listener.expect(CALL, 1)
    for number, name in ((0, "start"), (1, "token"), (2, "token"), (2, "token"), (3, "done"),
                         (3, "done")):  # fmt: skip
        listener.take(CALL, number, name, b"{}")
    assert exchange.answer.count(b"event: ") == 2
    assert not exchange.ended
    for number in range(2 * MAX_EXPECTED):
        listener.expect(f"call-{number}", 1)
    assert len(listener._expected) == MAX_EXPECTED


def test_silence_is_broken_by_comments() -> None:
    """Unless the client does not read, or is gone."""
    listener, exchange = listen()
    listener.begin(b"")
    listener.expire()
    assert exchange.answer.startswith(b":")
    assert exchange.answer.endswith(b"\n\n")
    n = len(exchange.answer)
    listener.pause()
    listener.expire()
    listener.resume()
    listener.left()
    listener.expire()
    assert len(exchange.answer) == n


def test_client_that_leaves_is_told_of_once() -> None:
    """And never written to again."""
    listener, exchange = listen(whole=False)
    gone: list[int] = []
    listener.on_left = lambda: gone.append(1)
    listener.begin(b"")
    assert exchange.on_disconnect is not None
    exchange.on_disconnect()
    listener.left()
    listener.take(CALL, 0, "start", b"{}")
    assert gone == [1]
    assert exchange.answer == b""


def test_drain_ends_sessions_only() -> None:
    """A call's stream has an end of its own."""
    session, left = listen(whole=False)
    call, stays = listen()
    for listener in (session, call):
        listener.begin(b"")
        listener.drain()
    assert left.ended
    assert not stays.ended
