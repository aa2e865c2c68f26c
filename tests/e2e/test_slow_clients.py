"""Clients that send or read too slowly are let go; nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.messages import BODY, CHUNKED, LENGTH, get, post
from tests.support.raw import RawClient, chat, parse_head
from tests.support.upstream import Upstream
from tests.support.wait import unhurried, wait_for

CHAT = "/v1/chat/completions"
PATIENCE_S = 0.4
QUICK = f"""
[server]
header_timeout_s = {PATIENCE_S}
body_timeout_s = {PATIENCE_S}
idle_timeout_s = {PATIENCE_S}

[[backends]]
name = "up"
kind = "openai"
base_url = "{{0}}"
"""


@pytest.fixture(scope="module")
def quick(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway with little patience."""
    with (
        Upstream() as upstream,
        Gateway(short_tmp / "quick", config=QUICK.format(upstream.base_url)) as gateway,
    ):
        yield gateway, upstream


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", (0,)),
        (b"GET /v1/mod", (0, 408)),
        (get()[:-2], (0, 408)),
        (post(LENGTH, body=BODY[:10]), (408,)),
        (post(CHUNKED, body=b"10\r\n{"), (408,)),
        (post(CHUNKED, body=b""), (408,)),
    ],
    ids=["silent", "half a line", "half a head", "half a body", "half a chunk", "no chunk"],
)
def test_unfinished_request_is_closed_in_time(
    quick: tuple[Gateway, Upstream], sent: bytes, answered: tuple[int, ...]
) -> None:
    """408 where it can be said, then the end; the upstream is never asked."""
    gateway, upstream = quick
    before = upstream.counters.requests

    def closed() -> None:
        with RawClient(gateway.url) as client:
            client.send(sent)
            said = client.read_to_end()
        status = parse_head(said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")[0] if said else 0
        assert status in answered

    unhurried(closed, PATIENCE_S)
    assert upstream.counters.requests == before


def test_dripping_head_does_not_extend_its_deadline(quick: tuple[Gateway, Upstream]) -> None:
    """Each byte buys no time: the clock of a head starts at its first byte."""
    gateway, _ = quick
    with RawClient(gateway.url) as client:
        drops = iter(get(b"/v1/models", b"X-Slow: " + b"y" * 500))

        def cut_off() -> bool:
            client.send(bytes([next(drops)]))
            client.sock.settimeout(0.02)
            try:
                return client.read_some() is not None
            except TimeoutError:
                return False

        wait_for(cut_off, 5, "the dripping client is cut off")


def test_idle_connection_is_closed(quick: tuple[Gateway, Upstream]) -> None:
    """Keep-alive has an end."""
    gateway, _ = quick

    def closed() -> None:
        with RawClient(gateway.url) as client:
            assert client.request("GET", "/live").status == 200
            assert client.closed(20)

    unhurried(closed, PATIENCE_S)


def test_slow_answer_is_not_an_idle_client(quick: tuple[Gateway, Upstream]) -> None:
    """While a call is open the client owes nothing."""
    gateway, upstream = quick
    upstream.play("answer", first_s=1.2)

    def answered() -> None:
        assert gateway.ask(CHAT, chat("take your time", model="m")).status == 200

    unhurried(answered, PATIENCE_S)
    upstream.play()


def test_client_that_reads_nothing_stops_its_upstream(quick: tuple[Gateway, Upstream]) -> None:
    """A stream nobody reads is held back all the way, not buffered; leaving ends it."""
    gateway, upstream = quick
    upstream.queue("endless", pad_bytes=65_536, chunks=1)
    aborted = upstream.counters.aborted
    body = json.dumps(chat("a flood", model="m", stream=True)).encode()
    with ExitStack() as opened:

        def begins() -> None:
            client = opened.enter_context(RawClient(gateway.url))
            client.send(post(b"Content-Length: %d" % len(body), body=body))
            assert client.read_head()[0] == 200

        unhurried(begins, PATIENCE_S)
        seen = [-1, -1, -1]

        def still() -> bool:
            seen.append(upstream.counters.sent_bytes)
            return seen[-1] == seen[-2] == seen[-3]

        wait_for(still, 10, "the upstream is held back", every_s=0.2)
        assert seen[-1] < 32 << 20
    wait_for(lambda: upstream.counters.aborted == aborted + 1, 5, "the upstream is let go")
