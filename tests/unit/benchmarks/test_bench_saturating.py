"""The saturating clients count what they were sent, however it was cut up."""

import asyncio

import pytest

from benchmarks.saturating import Client, Waits

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
END = b"data: [DONE]\n\n"


class FakeTransport:
    """Counts requests."""

    def __init__(self):
        self.asked = 0
        self.closed = False

    def write(self, data):
        """Take a request."""
        self.asked += 1

    def close(self):
        """End."""
        self.closed = True


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_tokens_are_counted_however_they_arrive(size):
    """The first of the rounds does not count."""
    loop = asyncio.new_event_loop()
    waits, transport = Waits(), FakeTransport()
    client = Client("h", 1, 3, 5, waits, loop.create_future())
    client.connection_made(transport)
    for _ in range(3):
        sent = HEAD + EVENT * 20 + END
        for at in range(0, len(sent), size):
            client.data_received(sent[at : at + size])
    client.connection_lost(None)
    loop.close()
    assert (waits.tokens, len(waits.first), waits.failed) == (40, 2, 0)
    assert (transport.asked, transport.closed) == (3, True)


def test_refusal_and_a_cut_count_as_failed():
    """And end the client."""
    for sent in (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", HEAD + EVENT):
        loop = asyncio.new_event_loop()
        waits, transport, done = Waits(), FakeTransport(), loop.create_future()
        client = Client("h", 1, 3, 5, waits, done)
        client.connection_made(transport)
        client.data_received(sent)
        client.connection_lost(None)
        assert waits.failed == 1
        assert done.done()
        loop.close()
