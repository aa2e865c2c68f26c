"""The mock upstream: replies, streams, counters and changes of behaviour."""

import asyncio
import json

import httptools

from benchmarks.payload import Payload
from benchmarks.upstream import Connection, Upstream
from tests.unit.benchmarks.fakes import FakeTransport


def request(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


CHAT = request("/v1/chat/completions", Payload("t").body(1))
STREAM = request("/v1/chat/completions", Payload("t", stream=True).body(1))


def bodies(raw: bytes) -> list[tuple[int, bytes]]:
    """Parse replies: status and body of every whole one."""
    found: list[tuple[int, bytes]] = []

    class Events:
        def on_message_begin(self) -> None:
            self.body = b""

        def on_body(self, piece: bytes) -> None:
            self.body += piece

        def on_message_complete(self) -> None:
            found.append((parser.get_status_code(), self.body))

    parser = httptools.HttpResponseParser(Events())
    parser.feed_data(raw)
    return found


class Talk:
    """One connection to a fresh upstream."""

    def __init__(self, chunks: int = 64) -> None:
        self.upstream = Upstream(chunks, 0.0, asyncio.get_running_loop())
        self.wire = FakeTransport()
        self.connection = Connection(self.upstream)
        self.connection.connection_made(self.wire)

    async def ask(self, raw: bytes) -> bytes:
        """Send bytes and answer what came back once nothing is left to do."""
        start = len(self.wire.sent)
        self.connection.data_received(raw)
        for _ in range(100):
            await asyncio.sleep(0)
        return self.wire.sent[start:]


def test_unary_chat_gets_one_completion():
    """The reply is a chat completion with usage."""

    async def scenario() -> None:
        talk = Talk()
        [(status, body)] = bodies(await talk.ask(CHAT))
        assert status == 200
        assert json.loads(body)["usage"]["total_tokens"] == 48
        assert talk.upstream.counters.requests == 1

    asyncio.run(scenario())


def test_stream_has_its_events_and_its_end():
    """64 events, the last with a finish reason, then the done mark."""

    async def scenario() -> None:
        talk = Talk(chunks=64)
        [(status, body)] = bodies(await talk.ask(STREAM))
        events = body.decode().removesuffix("\n\n").split("\n\n")
        assert status == 200
        assert len(events) == 65
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "stop"
        assert talk.upstream.counters.streams_done == 1

    asyncio.run(scenario())


def test_held_stream_stays_open_after_its_first_event():
    """A memory measurement needs streams that do nothing."""

    async def scenario() -> None:
        talk = Talk()
        await talk.ask(request("/__set", b'{"hold": true}'))
        assert bodies(await talk.ask(STREAM)) == []
        assert talk.wire.sent.count(b"data: ") == 1

    asyncio.run(scenario())


def test_failures_are_counted_down():
    """The next N requests fail, then all is well again."""

    async def scenario() -> None:
        talk = Talk()
        await talk.ask(request("/__set", b'{"fail": 1, "status": 429}'))
        replies = bodies(await talk.ask(CHAT)) + bodies(await talk.ask(CHAT))
        assert [status for status, _ in replies] == [429, 200]

    asyncio.run(scenario())


def test_stream_left_by_its_client_is_counted_as_aborted():
    """Writing stops with the connection."""

    async def scenario() -> None:
        talk = Talk(chunks=1000)
        talk.connection.data_received(STREAM)
        talk.connection.connection_lost(None)
        size = len(talk.wire.sent)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(talk.wire.sent) == size
        assert talk.upstream.counters.aborted == 1
        assert talk.upstream.counters.open == 0

    asyncio.run(scenario())


def test_models_and_counters_are_served():
    """A router may probe, and the runner may count."""

    async def scenario() -> None:
        talk = Talk()
        raw = await talk.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert json.loads(bodies(raw)[0][1])["data"][0]["id"] == "echo"
        raw = await talk.ask(b"GET /__stats HTTP/1.1\r\nHost: a\r\n\r\n")
        assert json.loads(bodies(raw)[0][1])["requests"] == 0

    asyncio.run(scenario())


def test_nonsense_closes_the_connection():
    """A gateway that sends garbage is told at once."""

    async def scenario() -> None:
        talk = Talk()
        await talk.ask(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert talk.wire.closed

    asyncio.run(scenario())
