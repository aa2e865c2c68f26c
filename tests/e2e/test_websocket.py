"""Native streams over WebSockets: aiohttp's client for what is right, raw frames for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.raw import ClosedEarlyError, ask
from tests.support.rfc6455 import BINARY, CLOSE, PING, PONG, TEXT, RawSocket, frame
from tests.support.shards import connect_to, session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for, wait_still

PATHS = ("/api/v1/stream", "/v1/stream", "/api/v1/ws")
HEARTBEAT_S = 0.6
SLOW_READER_S = 1.5
PER_MIN = 50
ORIGIN = "https://app.example"
MIB = 1 << 20


@dataclass(slots=True)
class Bench:
    """Two shards before echo and an upstream."""

    gateway: Gateway
    upstream: Upstream

    def open(self, path: str = "/api/v1/ws", after: bytes = b"") -> RawSocket:
        """Upgrade a connection."""
        return RawSocket(self.gateway.url).upgrade(path, after)


def config_of(upstream: Upstream) -> str:
    """Short heartbeats, few messages, one origin."""
    config = ECHO + backend("up", upstream.base_url)
    config += section("[server]", slow_reader_s=SLOW_READER_S)
    config += section("[server.cors]", origins=[ORIGIN])
    return config + section("[server.streams]", heartbeat_s=HEARTBEAT_S, messages_per_min=PER_MIN)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """One gateway for all tests that leave it as it was."""
    with Upstream() as upstream:
        config = config_of(upstream)
        with Gateway(short_tmp / "websocket", config=config, workers=2) as gateway:
            yield Bench(gateway, upstream)


def hear(bench: Bench, path: str, *messages: Any, ends: int = 1) -> list[dict[str, Any]]:
    """Send messages with aiohttp's client and gather answers until that many requests ended."""

    async def talk() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(bench.gateway.url + path) as socket,
        ):
            for message in messages:
                await socket.send_json(message)
            while sum(m["type"] in ("done", "error") for m in found) < ends:
                found.append(await socket.receive_json(timeout=15))
        assert socket.close_code == 1000
        return found

    return asyncio.run(talk())


# -- the grammar ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_request_is_acknowledged_streamed_and_done(bench: Bench, path: str) -> None:
    """ack, start, a token per word, done with result and status; all tagged by one request id."""
    found = hear(bench, path, {"prompt": "three small words", "session_id": "w-1"})
    closing = [m for m in found if m["type"] == "token" and m["finish_reason"]]
    assert len(closing) == (path == "/v1/stream")
    plain = [m for m in found if m not in closing]
    assert [m["type"] for m in plain] == ["ack", "start", "token", "token", "token", "done"]
    assert len({m["request_id"] for m in found}) == 1
    assert (found[0]["status"], found[0]["session_id"]) == ("processing", "w-1")
    tokens = plain[2:-1]
    assert [(m["index"], m["finish_reason"]) for m in tokens] == [(i, None) for i in range(3)]
    assert "".join(m["text"] for m in tokens) == "three small words"
    done = found[-1]
    assert done["result"] == done["text"] == "three small words"
    assert (done["status"], done["finish_reason"], done["error"]) == ("completed", "stop", None)
    assert done["usage"]["total_tokens"] == 6


def test_last_token_carries_the_finish_reason(bench: Bench) -> None:
    """A client that joins texts up to a finish reason has the whole text, once."""
    said = ""
    for message in hear(bench, "/v1/stream", {"prompt": "one two"}):
        if "text" in message:
            said += message["text"]
        if message.get("finish_reason"):
            break
    assert said == "one two"


def test_request_that_does_not_stream_has_two_answers(bench: Bench) -> None:
    """An acknowledgement, then the finished record."""
    found = hear(bench, "/api/v1/ws", {"prompt": "at once", "stream": False})
    assert [(m["type"], m["status"]) for m in found] == [
        ("ack", "processing"), ("done", "completed"),
    ]  # fmt: skip
    assert found[1]["result"] == "at once"


def test_many_requests_at_once_do_not_mix(bench: Bench) -> None:
    """Twenty on one connection, sessions of both shards: they overlap, and each text is its own."""
    bench.upstream.play(chunks=6, delay_s=0.03)

    def overlap() -> bool:
        asked = [
            {"prompt": f"number {n}", "model": "up", "session_id": f"many-{n}",
             "client_request_id": f"c-{n}"}
            for n in range(20)
        ]  # fmt: skip
        found = hear(bench, "/api/v1/ws", *asked, ends=20)
        owners = {m["request_id"]: m["client_request_id"] for m in found if m["type"] == "ack"}
        assert list(owners.values()) == [f"c-{n}" for n in range(20)]
        assert all(owners[m["request_id"]] == m["client_request_id"] for m in found)
        for message in found:
            if message["type"] == "done":
                number = message["client_request_id"].removeprefix("c-")
                own = [m for m in found if m["request_id"] == message["request_id"]]
                said = [m["text"] for m in own if m["type"] == "token"]
                assert message["result"] == f"answer to number {number}" == "".join(said)
        ends = [at for at, m in enumerate(found) if m["type"] == "done"]
        starts = [at for at, m in enumerate(found) if m["type"] == "start"]
        assert len(ends) == 20
        return max(starts) < ends[10]

    # Not where a client stands still before it has asked for all.
    assert any(overlap() for _ in range(5))
    bench.upstream.play()


def test_one_request_at_a_time_where_one_is_meant(bench: Bench) -> None:
    """A second message while one runs is refused, and the first goes on."""
    bench.upstream.play(chunks=4, delay_s=0.1)

    def refuse() -> bool:
        asked = {"prompt": "slow", "model": "up"}
        found = hear(bench, "/api/v1/stream", asked, asked | {"client_request_id": "two"}, ends=2)
        refused = [m for m in found if m["type"] == "error"]
        if not refused:
            return False  # the first was over before the second came
        assert [(m["code"], m["request_id"]) for m in refused] == [("too_many_requests", None)]
        assert refused[0]["client_request_id"] == "two"
        assert found[-1]["result"] == "answer to slow"
        return True

    assert any(refuse() for _ in range(5))
    bench.upstream.play()


def test_cancelled_request_ends_alone(bench: Bench) -> None:
    """It is told so, its upstream is let go of, and its neighbour finishes."""
    bench.upstream.play(chunks=10, delay_s=0.1)

    def cancel() -> bool:
        aborted = bench.upstream.counters.aborted
        with bench.open() as socket:
            socket.say({"prompt": "stays", "model": "up"})
            socket.say({"prompt": "goes", "model": "up", "client_request_id": "goes"})
            seen: list[dict[str, Any]] = []
            while not (
                goes := [m for m in seen if m["type"] == "token" and "client_request_id" in m]
            ):
                seen.append(socket.message())
            socket.say({"type": "cancel", "request_id": goes[0]["request_id"]})
            (*before, error) = socket.until("error")
            if error["code"] == "request_not_found" or any(m["type"] == "done" for m in before):
                return False  # all was over before it was asked for
            assert (error["code"], error["request_id"]) == ("cancelled", goes[0]["request_id"])
            wait_for(lambda: bench.upstream.counters.aborted > aborted, 2, "its upstream let go of")
            (*_, done) = socket.until("done")
            assert done["result"] == "answer to stays"
            socket.say({"type": "cancel", "request_id": goes[0]["request_id"]})
            assert socket.until("error")[-1]["code"] == "request_not_found"
        return True

    assert any(cancel() for _ in range(5))
    bench.upstream.play()


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("{", None),
        ("[]", None),
        ('"x"', None),
        ("{}", "prompt"),
        ('{"prompt": ""}', "prompt"),
        ('{"prompt": 7}', "prompt"),
        ('{"prompt": "a", "promt": "b"}', "promt"),
        ('{"prompt": "a", "type": "other"}', "type"),
        ('{"prompt": "a", "request_id": "x"}', "request_id"),
        ('{"prompt": "a", "client_request_id": "a b"}', "client_request_id"),
        ('{"type": "cancel"}', "request_id"),
        ('{"prompt": "a", "temperature": 9}', "temperature"),
        ('{"prompt": "a", "model": "nobody-serves-this"}', None),
        ("[" * 30_000, None),
    ],
)
def test_bad_messages_are_told_and_the_connection_goes_on(
    bench: Bench, message: str, field: str | None
) -> None:
    """An error naming the field; the next request is answered."""
    with bench.open() as socket:
        socket.send(frame(TEXT, message.encode()))
        error = socket.until("error")[-1]
        assert error["param"] == field or field is None, error
        assert error["code"]
        assert error["error"] == error["code"]
        assert error["status"] == "failed"
        socket.say({"prompt": "still here"})
        assert socket.until("done")[-1]["result"] == "still here"


def test_failed_upstream_is_an_error_of_its_request(bench: Bench) -> None:
    """Before the first token and in mid-stream."""
    for mode in ("status", "cut"):
        bench.upstream.play(mode, status=400)
        found = hear(bench, "/api/v1/ws", {"prompt": "x", "model": "up"})
        assert found[0]["type"] == "ack"
        assert found[-1]["type"] == "error", found
        assert found[-1]["request_id"] == found[0]["request_id"]
    bench.upstream.play()


@pytest.mark.parametrize("path", PATHS)
def test_messages_over_the_rate_close_the_connection(bench: Bench, path: str) -> None:
    """RATE_LIMITED with the time to wait, then 4029; another connection has its own count."""
    with bench.open(path) as socket:
        for _ in range(PER_MIN):
            socket.say({})
        seen = [socket.message() for _ in range(PER_MIN)]
        assert {m["code"] for m in seen} == {"VALIDATION_ERROR"}
        # A full bucket also fills up while it is emptied.
        for _ in range(10):
            socket.say({})
        limited = next(m for m in iter(socket.message, None) if m["code"] != "VALIDATION_ERROR")
        assert limited["error"] == limited["code"] == "RATE_LIMITED"
        assert 0 < limited["retry_after_ms"] <= 60_000 / PER_MIN
        assert socket.close_code() == 4029
    with bench.open(path) as socket:
        socket.say({"prompt": "fresh"})
        assert socket.until("done")


# -- RFC 6455 ------------------------------------------------------------------------------------


def test_first_frame_may_come_with_the_handshake(bench: Bench) -> None:
    """Bytes after the request's head are the first frames."""
    first = frame(TEXT, json.dumps({"prompt": "eager"}).encode())
    with bench.open(after=first) as socket:
        assert socket.until("done")[-1]["result"] == "eager"


def test_message_may_come_in_fragments_around_a_ping(bench: Bench) -> None:
    """Even cut inside a character; the ping is answered at once, with its payload."""
    text = json.dumps({"prompt": "zwölf Boxkämpfer"}, ensure_ascii=False).encode()
    cut = text.index(b"\xc3") + 1
    with bench.open() as socket:
        socket.send(frame(TEXT, text[:cut], final=False))
        socket.send(frame(PING, b"there?"))
        socket.send(frame(0, b"", final=False))
        pong = socket.next()
        assert (pong.opcode, pong.payload) == (PONG, b"there?")
        socket.send(frame(0, text[cut:]))
        assert socket.until("done")[-1]["result"] == "zwölf Boxkämpfer"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xc3", final=False) + frame(0, b"("), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"{}", rsv=4), 1002),
        (frame(TEXT, b"{}", rsv=1), 1002),
        (frame(3, b""), 1002),
        (frame(11, b""), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", final=False), 1002),
        (frame(0, b"{}"), 1002),
        (frame(TEXT, b"{", final=False) + frame(TEXT, b"}"), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
        (frame(BINARY, b"\x00\x01"), 1003),
        (frame(TEXT, b"x" * (MIB + 1)), 1009),
        (frame(TEXT, b"x" * MIB, final=False) + frame(0, b"x"), 1009),
    ],
    ids=str,
)
def test_broken_frames_close_with_their_code(bench: Bench, frames: bytes, code: int) -> None:
    """Bad UTF-8, reserved bits and opcodes, malformed control frames, what is too long."""
    with bench.open() as socket:
        socket.send(frames)
        assert socket.close_code() == code


def test_message_of_a_mebibyte_is_taken(bench: Bench) -> None:
    """Exactly the limit, and in fragments."""
    head, tail = b'{"prompt": "', b'"}'
    text = head + b"y" * (MIB - len(head) - len(tail)) + tail
    with bench.open() as socket:
        socket.send(frame(TEXT, text))
        assert len(socket.until("done", "error")[-1]["result"]) > MIB - 100
    with bench.open() as socket:
        parts = [text[at : at + 65536] for at in range(0, MIB, 65536)]
        socket.send(frame(TEXT, parts[0], final=False))
        for part in parts[1:-1]:
            socket.send(frame(0, part, final=False))
        socket.send(frame(0, parts[-1]))
        assert socket.until("done", "error")[-1]["type"] == "done"


def test_announced_gigabyte_is_refused_unread(bench: Bench) -> None:
    """The length alone is too much."""
    head = b"\x81\xff" + (1 << 30).to_bytes(8, "big") + b"\0\0\0\0"
    with bench.open() as socket:
        socket.send(head)
        assert socket.close_code() == 1009


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_close_is_answered(bench: Bench, code: int) -> None:
    """By a close frame, and the connection ends."""
    with bench.open() as socket:
        socket.send(frame(CLOSE, code.to_bytes(2, "big") + b"bye"))
        assert socket.next().opcode == CLOSE
        assert socket.closed()


def test_floods_of_pings_and_fragments_end(bench: Bench) -> None:
    """Pings of one who reads are answered; fragments without an end are too many one day."""
    with bench.open() as socket:
        for _ in range(50):
            socket.send(frame(PING, b"p" * 125) * 20)
            for _ in range(20):
                assert socket.next().opcode in (PONG, PING)
        socket.send(frame(TEXT, b"", final=False))
        flood = frame(0, b"", final=False) * 1000

        def pour() -> None:
            for _ in range(100):
                socket.send(flood)

        pouring = threading.Thread(target=pour)
        pouring.start()
        # What is still poured in may make the kernel send a reset instead of the code.
        with contextlib.suppress(ClosedEarlyError):
            assert socket.close_code() in (1002, 1008, 1009)
        pouring.join(10)
    assert ask(bench.gateway.url, "/ready").status == 200


def test_dead_peer_is_cut_off(bench: Bench) -> None:
    """One that does not pong is gone after one and a half heartbeats."""
    began = time.monotonic()
    with bench.open() as socket:
        assert socket.next().opcode == PING
        assert socket.closed(10)
        assert time.monotonic() - began >= HEARTBEAT_S


# -- handshake -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_request_without_upgrade_is_426(bench: Bench, path: str) -> None:
    """It says what to upgrade to."""
    reply = bench.gateway.ask(path)
    assert reply.status == 426
    assert reply.headers["upgrade"] == "websocket"
    assert reply.headers["connection"].lower() == "upgrade"
    assert reply.json()["error"]["code"] == "upgrade_required"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec_WebSocket_Version": "7"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": "!" * 24}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://app.example.evil.example"}, 403),
        ({"Origin": "http://["}, 403),
    ],
    ids=str,
)
def test_bad_handshakes_are_plain_errors(
    bench: Bench, changes: dict[str, str | None], status: int
) -> None:
    """In the native dialect, before any upgrade."""
    with RawSocket(bench.gateway.url) as socket:
        reply = socket.refused("/api/v1/ws", **changes)
        assert reply.status == status, reply
        assert set(reply.json()["error"]) >= {"code", "message", "param"}


def test_allowed_and_own_origins_may_connect(bench: Bench) -> None:
    """What CORS allows, and pages of the gateway itself."""
    for origin in (ORIGIN, bench.gateway.url):
        with RawSocket(bench.gateway.url) as socket:
            socket.upgrade("/api/v1/ws", Origin=origin)


def test_upgrade_of_other_routes_is_no_websocket(bench: Bench) -> None:
    """Where nobody talks, the request is an ordinary one."""
    with RawSocket(bench.gateway.url) as socket:
        assert socket.refused("/v1/models").status == 200
    with RawSocket(bench.gateway.url) as socket:
        assert socket.refused("/v1/nowhere").status == 404


# -- clients that leave or dawdle ----------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_client_that_leaves_cancels_upstream(bench: Bench, place: int) -> None:
    """With a close frame or without, whichever shard serves the session."""
    bench.upstream.play("endless", delay_s=0.05)
    session = session_on(bench.gateway.url, place)
    for goodbye in (frame(CLOSE, b"\x03\xe8"), b""):
        counters = bench.upstream.counters
        aborted = counters.aborted
        with bench.open() as socket:
            socket.say({"prompt": "x", "model": "up", "session_id": session})
            socket.until("token")
            socket.send(goodbye)
        wait_for(lambda: counters.aborted > aborted, 2, "the upstream cancelled")  # noqa: B023
    bench.upstream.play()


def test_slow_reader_pauses_upstream_and_is_cut_off(bench: Bench) -> None:
    """Nothing is hoarded for it: the upstream stands still, then the call is cancelled."""
    bench.upstream.play("endless", delay_s=0.0, pad_bytes=4000)
    counters = bench.upstream.counters
    aborted = counters.aborted
    with bench.open() as socket:
        socket.say({"prompt": "x", "model": "up"})
        wait_still(lambda: counters.sent_bytes, 0.3, 15, "the upstream paused")
        wait_for(lambda: counters.aborted > aborted, 10, "the call cancelled")
    bench.upstream.play()


def test_drain_lets_calls_end_and_closes_with_1001(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """Idle connections close at once, busy ones after their last request, none is cut."""
    gateway = start_gateway(config=config_of(upstream), workers=2)
    upstream.play(chunks=8, delay_s=0.15)
    with RawSocket(gateway.url) as busy, RawSocket(gateway.url) as idle:
        busy.upgrade("/api/v1/ws")
        idle.upgrade("/api/v1/ws")
        busy.say({"prompt": "last words", "model": "up"})
        busy.until("token")
        gateway.send_signal(signal.SIGTERM)
        assert idle.close_code() == 1001
        idle.send(frame(CLOSE, b"\x03\xe9"))
        (*_, done) = busy.until("done", "error")
        assert done["result"] == "answer to last words"
        assert busy.close_code() == 1001
        busy.send(frame(CLOSE, b"\x03\xe9"))
    assert gateway.wait() == 0


def test_any_worker_talks(bench: Bench) -> None:
    """Both shards take WebSockets, for sessions of both."""
    for shard in (0, 1):
        with connect_to(bench.gateway.url, shard) as client:
            socket = RawSocket.__new__(RawSocket)
            socket.__dict__.update(client.__dict__)
            socket.upgrade("/api/v1/ws")
            for home in (0, 1):
                socket.say(
                    {"prompt": f"home {home}", "session_id": session_on(bench.gateway.url, home)}
                )
                assert socket.until("done")[-1]["result"] == f"home {home}"
