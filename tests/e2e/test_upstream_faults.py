"""Upstreams that refuse, stall, lie or break off: an error a client understands, never success.

Each fault is met on all four ways through a host: taken and served by one shard or by two, with a
length or chunked.  The shared gateways' own ends check that nothing left a traceback.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait as wait_readable
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.messages import error_of
from tests.support.raw import RawReply, chat
from tests.support.raw_upstream import COMPLETION, DELTA, EVENTS, RawUpstream, chunk, whole
from tests.support.shards import Way, ways
from tests.support.toml import ECHO, NO_RETRIES, backend
from tests.support.upstream import Upstream
from tests.support.wait import free_port, quickest, wait_for

PATIENT = {"connect_s": 20.0, "first_byte_s": 20.0, "idle_s": 20.0, "total_s": 60.0}
HASTY = {"connect_s": 0.5, "first_byte_s": 0.6, "idle_s": 0.6, "total_s": 4.0}
"""One at a time: on a machine that stands still for a moment every time-out may be met."""


@dataclass(slots=True)
class Bench:
    """One gateway, its misbehaving upstream, and the ways to both."""

    gateway: Gateway
    upstream: Upstream
    raw: RawUpstream
    ways: dict[str, Way]


# -- replies of the raw upstream, by the request's last words ------------------------------------


def _say(head: bytes, *parts: bytes, silence_s: float = 0.0) -> Any:
    """Serve these bytes, each part a moment later, hold the connection for a while, then close."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        for part in parts:
            wait_readable([connection], 0.05)
            connection.sendall(part)
        connection.settimeout(silence_s or 0.01)
        try:
            connection.recv(1)
        except TimeoutError:
            return

    return serve


def _drip(connection: socket.socket) -> None:
    """Send a proper stream's head and one event, then a byte at a time, slower than allowed."""
    connection.sendall(EVENTS + chunk(DELTA))
    for byte in chunk(DELTA):
        connection.settimeout(1.0)
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            connection.sendall(bytes([byte]))


def _endless_event(connection: socket.socket) -> None:
    """Send one event that never ends."""
    connection.sendall(EVENTS + chunk(DELTA) + chunk(b"data: "))
    while True:
        connection.sendall(chunk(b"x" * 65_536))


def _endless_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Filler: " + b"y" * 8000 + b"\r\n")


LENGTH = b"Content-Length: %d\r\n" % len(COMPLETION)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
RAW: dict[str, Any] = {
    "no HTTP": _say(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "CR in a header": _say(HEAD + LENGTH + b"X-Ratelimit-A: b\rX-Injected: c\r\n\r\n" + COMPLETION),
    "LF in a header": _say(HEAD + LENGTH + b"X-Ratelimit-A: b\nX-Injected c\r\n\r\n" + COMPLETION),
    "NUL in a header": _say(HEAD + LENGTH + b"X-Ratelimit-A: b\0c\r\n\r\n" + COMPLETION),
    "two lengths": _say(HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + COMPLETION),
    "length and chunked": _say(HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + COMPLETION),
    "negative length": _say(HEAD + b"Content-Length: -1\r\n\r\n" + COMPLETION),
    "unknown coding": _say(HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + COMPLETION),
    "bad chunk size": _say(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + COMPLETION),
    "upgrade": _say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "endless head": _endless_head,
    "closed at once": _say(b""),
    "half a head": _say(b"HTTP/1.1 200 OK\r\nContent-"),
    "deep JSON": _say(whole(b"[" * 100_000)),
    "not UTF-8": _say(whole(b'{"id":"\xff\xfe"}')),
    "no event": _say(EVENTS, chunk(b"<html>surprise</html>\n\n"), b"0\r\n\r\n"),
    "event without end": _say(EVENTS, chunk(DELTA[:-2]), b"0\r\n\r\n"),
    "half a character": _say(EVENTS, chunk(b'data: {"id":"\xe2\x82"}\n\n'), b"0\r\n\r\n"),
    "endless event": _endless_event,
    "drip": _drip,
    "cut inside an event": _say(EVENTS, chunk(DELTA), chunk(DELTA[:20])),
    "bad chunk later": _say(EVENTS, chunk(DELTA), b"zz\r\n", silence_s=1.0),
}


def _serve_raw(upstream: RawUpstream, connection: socket.socket, _number: int) -> None:
    request = upstream.take(connection)
    RAW[json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"]](connection)


@pytest.fixture(scope="module")
def black_hole() -> Iterator[int]:
    """A port whose handshakes never complete: its accept queue is full and nobody accepts."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(8):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@pytest.fixture(scope="module")
def bench(short_tmp: Path, black_hole: int) -> Iterator[Bench]:
    """Two shards before one upstream of each kind, patient or hasty in one respect."""
    with ExitStack() as made:
        upstream = made.enter_context(Upstream())
        raw = made.enter_context(RawUpstream(_serve_raw))
        config = (
            NO_RETRIES
            + ECHO
            + "".join(
                backend(name, url, timeouts=PATIENT | {key: HASTY[key] for key in hasty})
                for name, url, *hasty in (
                    ("up", upstream.base_url),
                    ("up-first", upstream.base_url, "first_byte_s"),
                    ("up-idle", upstream.base_url, "idle_s"),
                    ("up-total", upstream.base_url, "total_s"),
                    ("raw", raw.base_url),
                    ("raw-idle", raw.base_url, "idle_s"),
                    ("refusing", f"http://127.0.0.1:{free_port()}/v1"),
                    ("hole", f"http://127.0.0.1:{black_hole}/v1", "connect_s"),
                )
            )
        )
        gateway = made.enter_context(Gateway(short_tmp / "faults", config=config, workers=2))
        yield Bench(gateway, upstream, raw, ways(gateway.url))


def on_all_ways(bench: Bench, *bodies: dict[str, Any]) -> list[tuple[str, RawReply]]:
    """Ask everything on all four ways at once; answers each reply with a name for it."""
    asked = [(f"{name} #{n}", way, body) for name, way in bench.ways.items()
             for n, body in enumerate(bodies)]  # fmt: skip
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = pool.map(lambda one: one[1].ask(one[2]), asked)
        return [(name, reply) for (name, _, _), reply in zip(asked, replies, strict=True)]


@dataclass(frozen=True, slots=True)
class Fault:
    """What the upstream does, and what its client must get."""

    id: str
    status: int
    code: str
    stream: bool | None = None
    script: dict[str, Any] = field(default_factory=dict)
    model: str = "up"

    def body(self) -> dict[str, Any]:
        """The request that provokes it."""
        if self.model.startswith("raw"):
            return chat(self.id, self.model, stream=bool(self.stream))
        metadata = {"upstream": {"mode": self.id, **self.script}}
        return chat("fault", self.model, stream=bool(self.stream), metadata=metadata)


BEFORE = [
    Fault("status", 502, "upstream_error", script={"status": 500}),
    Fault("status", 503, "upstream_overloaded", script={"status": 503}),
    Fault("status", 504, "upstream_timeout", script={"status": 504}),
    Fault("status", 502, "upstream_auth_failed", script={"status": 401}),
    Fault("status", 502, "upstream_auth_failed", script={"status": 403}),
    Fault("hang", 504, "first_byte_timeout", model="up-first"),
    Fault("html", 502, "bad_upstream_body"),
    Fault("malformed_json", 502, "bad_upstream_body", stream=False),
    Fault("malformed_sse", 502, "bad_upstream_body", stream=True),
    Fault("short", 502, "cut_off", stream=False),
    Fault("cut", 502, "cut_off", stream=False),
    Fault("cut", 502, "cut_off", stream=True, script={"cut_after": 0}),
    Fault("hang_body", 504, "idle_timeout", stream=False, model="up-idle"),
    Fault("hang_body", 504, "idle_timeout", stream=True, script={"cut_after": 0}, model="up-idle"),
    Fault("many_headers", 502, "bad_upstream_head"),
    Fault("endless", 502, "endless_reply", stream=False),
    Fault("reset", 502, "no_reply"),
    Fault("drip", 504, "first_byte_timeout", script={"delay_s": 0.2}, model="up-first"),
    Fault("refused", 502, "connect_refused", model="refusing"),
    Fault("black hole", 504, "connect_timeout", model="hole"),
    Fault("no HTTP", 502, "bad_upstream_head", model="raw"),
    Fault("CR in a header", 502, "bad_upstream_head", model="raw"),
    Fault("LF in a header", 502, "bad_upstream_head", model="raw"),
    Fault("NUL in a header", 502, "bad_upstream_head", model="raw"),
    Fault("two lengths", 502, "bad_upstream_head", model="raw"),
    Fault("length and chunked", 502, "bad_upstream_head", model="raw"),
    Fault("negative length", 502, "bad_upstream_head", model="raw"),
    Fault("unknown coding", 502, "bad_upstream_head", model="raw"),
    Fault("upgrade", 502, "bad_upstream_head", model="raw"),
    Fault("endless head", 502, "bad_upstream_head", model="raw"),
    Fault("closed at once", 502, "no_reply", model="raw"),
    Fault("half a head", 502, "no_reply", model="raw"),
    Fault("bad chunk size", 502, "bad_framing", model="raw"),
    Fault("deep JSON", 502, "bad_upstream_body", model="raw"),
    Fault("not UTF-8", 502, "bad_upstream_body", model="raw"),
    Fault("no event", 502, "bad_upstream_body", stream=True, model="raw"),
    Fault("event without end", 502, "truncated_stream", stream=True, model="raw"),
    Fault("half a character", 502, "bad_upstream_body", stream=True, model="raw"),
]


def name_of(fault: Fault) -> str:
    """Name a case."""
    kind = {None: "", True: " stream", False: " unary"}[fault.stream]
    status = fault.script.get("status", "")
    return f"{fault.id.replace(' ', '_')}{status}{kind.replace(' ', '-')}"


@pytest.mark.parametrize("fault", BEFORE, ids=name_of)
def test_fault_before_the_first_byte_is_one_error_response(bench: Bench, fault: Fault) -> None:
    """The status and code say whose fault it is and whether to come back."""
    body = fault.body()
    bodies = [body] if fault.stream is not None else [body, body | {"stream": True}]
    for name, reply in on_all_ways(bench, *bodies):
        assert reply.status == fault.status, (name, reply)
        assert error_of(reply)["code"] == fault.code, (name, reply)
        assert b"x-injected" not in reply.head.lower(), (name, reply)


AFTER = [
    Fault("cut", 0, "cut_off", stream=True),
    Fault("hang_body", 0, "idle_timeout", stream=True, model="up-idle"),
    Fault("no_done", 0, "truncated_stream", stream=True),
    Fault("endless", 0, "total_timeout", stream=True, script={"delay_s": 0.02}, model="up-total"),
    Fault("cut inside an event", 0, "cut_off", stream=True, model="raw"),
    Fault("bad chunk later", 0, "bad_framing", stream=True, model="raw"),
    Fault("endless event", 0, "endless_reply", stream=True, model="raw"),
    Fault("drip", 0, "idle_timeout", stream=True, model="raw-idle"),
]


@pytest.mark.parametrize("fault", AFTER, ids=name_of)
def test_fault_in_mid_stream_is_an_error_event_and_an_end(bench: Bench, fault: Fault) -> None:
    """Whole events, then one error event, then a proper end of body; never ``[DONE]``."""
    body = fault.body()
    for name, reply in on_all_ways(bench, body, body | {"stream_options": {"include_usage": True}}):
        assert reply.status == 200, (name, reply)
        events = [json.loads(event) for event in reply.events]
        assert events[0]["choices"], (name, events)
        assert events[-1]["error"]["code"] == fault.code, (name, events[-1])
        assert b"[DONE]" not in reply.events, name
        assert reply.body.endswith(b"\n\n"), name


def test_error_event_of_the_upstream_passes_once_and_is_a_failure(bench: Bench) -> None:
    """The upstream's own words, no second error, a proper end; counted as failed."""
    failed = _failures(bench)
    body = chat("x", "up", stream=True, metadata={"upstream": {"mode": "stream_error"}})
    for name, reply in on_all_ways(bench, body):
        events = [json.loads(event) for event in reply.events]
        assert events[-1]["error"]["message"] == "upstream broke", (name, events)
        assert sum("error" in event for event in events) == 1, (name, events)
    wait_for(lambda: _failures(bench) == failed + 4, 5, "four failures")


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429])
def test_refusal_of_the_request_passes_as_it_came(bench: Bench, status: int) -> None:
    """What is the client's business has the upstream's own status and body."""
    script = {"mode": "status", "status": status, "headers": {"Retry-After": "7"}}
    body = chat("no", "up", metadata={"upstream": script})
    for name, reply in on_all_ways(bench, body, body | {"stream": True}):
        assert reply.status == status, (name, reply)
        assert reply.json()["error"]["message"] == "upstream says no", (name, reply)
        assert reply.json()["error"]["code"] == "upstream", (name, reply)
        assert (reply.headers.get("retry-after") == "7") == (status == 429), (name, reply)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after_of_the_upstream_reaches_the_client(bench: Bench, status: int) -> None:
    """The upstream's own pause, not a guess of ours."""
    script = {"mode": "status", "status": status, "headers": {"Retry-After": "23"}}
    for name, reply in on_all_ways(bench, chat("later", "up", metadata={"upstream": script})):
        assert reply.status >= 429, (name, reply)
        assert reply.headers["retry-after"] == "23", (name, reply)
        assert reply.headers["retry-after-ms"] == "23000", (name, reply)


def test_refused_connection_is_reported_at_once(bench: Bench) -> None:
    """Nothing is waited for: the fastest of some refusals takes less than 50 ms."""
    way = bench.ways["local-fast"]

    def refused_s() -> float:
        with way.open() as client:
            began = time.monotonic()
            client.send(way.request(client, chat("x", "refusing")))
            assert client.read_reply("POST").status == 502
            return time.monotonic() - began

    quickest(refused_s, 10, 0.05)


def test_refusing_upstream_is_asked_again_when_it_is_back(short_tmp: Path) -> None:
    """A refusal is not remembered: the first call after the upstream's return succeeds."""
    with Upstream() as upstream:
        config = backend("up", upstream.base_url)
        with Gateway(short_tmp / "back", config=config) as gateway:
            assert gateway.ask("/v1/chat/completions", chat("a", "up")).status == 200
            upstream.refuse()
            assert gateway.ask("/v1/chat/completions", chat("b", "up")).status == 502
            upstream.accept()
            assert gateway.ask("/v1/chat/completions", chat("c", "up")).status == 200


def test_failures_are_counted_as_failures_and_become_dead_letters(bench: Bench) -> None:
    """Unary or in mid-stream, a failure ends once and leaves one letter."""
    way = bench.ways["forwarded-fast"]
    failed = _failures(bench)
    ids = []
    for stream, mode in ((False, "short"), (True, "cut"), (True, "no_done")):
        body = chat("keep", "up", stream=stream, metadata={"upstream": {"mode": mode}})
        ids.append(way.ask(body).headers["x-tpo-call-id"])
    wait_for(lambda: _failures(bench) == failed + 3, 5, "three failures")
    for call_id in ids:
        letter = wait_for(partial(_letter, bench, call_id), 5, "its dead letter")
        assert letter.json()["request_id"] == call_id


def _letter(bench: Bench, call_id: str) -> RawReply | None:
    reply = bench.gateway.ask(f"/api/v1/dlq/{call_id}")
    return reply if reply.status == 200 else None


def _failures(bench: Bench) -> float:
    page = bench.gateway.metrics()
    return metric(page, "tpo_calls_total", terminal="failed")


def test_upstream_that_closes_at_once_never_hangs_a_call(short_tmp: Path) -> None:
    """A connection that is gone before it can be used fails its call at once, two hundred times."""
    with (
        RawUpstream(lambda *_: None) as closing,
        Gateway(short_tmp / "closing", config=backend("up", closing.base_url)) as gateway,
    ):
        for number in range(200):
            reply = gateway.ask("/v1/chat/completions", chat(str(number), "up"))
            assert reply.status == 502, reply
        assert closing.connections >= 200
