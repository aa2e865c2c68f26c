"""Answers in br, gzip and deflate to real clients, and answers that an upstream compressed.

Both hosts have two workers; a client's connection goes to either.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import OpenAI

from tests.support.codings import CODINGS, packed, unpacked, unpacker
from tests.support.gateway import Gateway
from tests.support.messages import CHAT, ask_on, error_of
from tests.support.raw import RawClient, build, chat
from tests.support.raw_upstream import RawUpstream, chunk
from tests.support.toml import NO_RETRIES, backend

LANES = ["fast", "full"]
TEXT = "Rivers run to the sea, and bridges run across them, and fish run under these. " * 8
SIMULATOR = f"""
[server]
compression_min_bytes = 200
compress_streams = true

[simulator]
strategy = "fixed"
text = "{TEXT.strip()}"
"""
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DELTA = b'data: {"id":"r","object":"chat.completion.chunk","choices":[%b]%b}\n\n'


def delta(word: str) -> bytes:
    """One piece of a stream."""
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return DELTA % (json.dumps(choice).encode(), b"")


LAST = DELTA % (b'{"index":0,"delta":{},"finish_reason":"stop"}', b"")
COUNTED = DELTA % (b"", b',"usage":' + json.dumps(USAGE).encode())
DONE = b"data: [DONE]\n\n"
WHOLE = json.dumps(
    {"id": "r", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
     "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT},
                  "finish_reason": "stop"}]}
).encode()  # fmt: skip


class Packing:
    """An upstream that compresses what nobody asked it to; a stream's second part may be held."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def serve(self, upstream: RawUpstream, connection: socket.socket, _number: int) -> None:
        """One request, as its words say: ``CODING`` or ``CODING cut``."""
        while True:
            body = json.loads(upstream.take(connection).partition(b"\r\n\r\n")[2])
            coding, _, how = body["messages"][-1]["content"].partition(" ")
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\n" % coding.encode()
            if not body.get("stream"):
                data = b"".join(packed(coding, WHOLE)) if coding in CODINGS else WHOLE
                data = data[:-20] if how else data
                head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
                connection.sendall(head + data)
                continue
            head += b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            first, second, end = packed(coding, delta("one"), delta("two") + LAST + COUNTED + DONE)
            connection.sendall(head + chunk(first))
            self.go_on.wait(30)
            connection.sendall(chunk(second) + (chunk(end) if end else b"") + b"0\r\n\r\n")


@dataclass(frozen=True, slots=True)
class Bench:
    """A simulator, and a gateway before an upstream that compresses."""

    simulator: Gateway
    gateway: Gateway
    packing: Packing


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """Both at once."""
    with ExitStack() as made:
        packing = Packing()
        upstream = made.enter_context(RawUpstream(packing.serve))
        made.callback(packing.go_on.set)
        config = NO_RETRIES + backend("up", upstream.base_url)
        yield Bench(
            made.enter_context(
                Gateway(short_tmp / "sim", config=SIMULATOR, workers=2, verb="simulate")
            ),
            made.enter_context(Gateway(short_tmp / "gw", config=config, workers=2)),
            packing,
        )


# -- what clients get ----------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("coding", CODINGS)
def test_whole_answers_and_streams_in_each_coding(bench: Bench, lane: str, coding: str) -> None:
    """The text is what it is without; caches are told."""
    for stream in (False, True):
        body = json.dumps(chat(stream=stream, model="gpt-4o")).encode()
        plain = ask_on(bench.simulator.url, lane, body)
        reply = ask_on(bench.simulator.url, lane, body, b"Accept-Encoding: " + coding.encode())
        assert "content-encoding" not in plain.headers
        assert reply.headers["content-encoding"] == coding
        assert "accept-encoding" in reply.headers["vary"] in plain.headers["vary"]
        text = unpacked(coding, reply.body)
        assert len(reply.body) < len(text) / 1.5
        if stream:
            assert text.endswith(b"data: [DONE]\n\n")
            assert text.count(b"\n\n") == plain.body.count(b"\n\n")
        else:
            assert json.loads(text)["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("br;q=0.1, gzip;q=0.3, deflate;q=0.2", "gzip"), ("gzip;q=0.1, deflate", "deflate"),
     ("gzip, deflate, br, zstd", CODINGS[0]), ("zstd", None), ("gzip;q=0, identity", None),
     ("identity, gzip;q=0.9", None), ("identity;q=0", None), ("*;q=0", None)],
)  # fmt: skip
def test_the_best_of_what_a_client_takes(bench: Bench, accepted: str, coding: str | None) -> None:
    """By its weights; plain when there is nothing, refused identity or not."""
    for stream in (False, True):
        body = json.dumps(chat(stream=stream, model="gpt-4o")).encode()
        reply = ask_on(bench.simulator.url, "fast", body, f"Accept-Encoding: {accepted}".encode())
        assert reply.status == 200
        assert reply.headers.get("content-encoding") == coding, stream


@pytest.mark.parametrize("coding", CODINGS)
def test_each_event_can_be_read_when_it_comes(bench: Bench, coding: str) -> None:
    """Before the next: the simulator holds its second token back until the connection is cut."""
    order = {"accept-encoding": coding, "x-sim-fault": "stall_after=1",
             "host": "localhost", "content-type": "application/json"}  # fmt: skip
    body = json.dumps(chat(stream=True, model="gpt-4o")).encode()
    with RawClient(bench.simulator.url) as client:
        client.send(build("POST", CHAT, order, body))
        _, headers, _ = client.read_head()
        assert headers["content-encoding"] == coding
        read, text = unpacker(coding), b""
        for piece in client.chunks():
            text += read(piece)
            if b"Rivers" in text:
                break
        assert text.endswith(b"\n\n")
        assert b"[DONE]" not in text


def test_aiohttp_reads_them(bench: Bench) -> None:
    """With the codings that it asks for by itself, and each alone."""

    async def main() -> None:
        async with aiohttp.ClientSession(bench.simulator.url) as session:
            for accepted in (None, *CODINGS):
                headers = {"accept-encoding": accepted} if accepted else {}
                asked = chat(model="gpt-4o")
                async with session.post(CHAT, json=asked, headers=headers) as reply:
                    said = await reply.json()
                    assert reply.headers["content-encoding"] in (
                        [accepted] if accepted else CODINGS
                    )
                    assert said["choices"][0]["message"]["content"] == TEXT.strip()
                asked |= {"stream": True}
                async with session.post(CHAT, json=asked, headers=headers) as reply:
                    lines = [line async for line in reply.content]
                    assert reply.headers["content-encoding"] in (
                        [accepted] if accepted else CODINGS
                    )
                    assert lines[-2] == b"data: [DONE]\n"

    asyncio.run(main())


def test_the_openai_sdk_reads_them(bench: Bench) -> None:
    """It asks for what its HTTP client can undo."""
    with OpenAI(base_url=f"{bench.simulator.url}/v1", api_key="sk-x", max_retries=0) as client:
        asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
        raw = client.chat.completions.with_raw_response.create(**asked)
        assert raw.headers["content-encoding"] in CODINGS
        assert raw.parse().choices[0].message.content == TEXT.strip()
        stream = client.chat.completions.create(**asked, stream=True)
        assert stream.response.headers["content-encoding"] in CODINGS
        words = [c.choices[0].delta.content or "" for c in stream if c.choices]
        assert "".join(words) == TEXT.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("stream", [False, True])
def test_curl_reads_them(bench: Bench, stream: bool) -> None:
    """``--compressed`` asks for all that it was built with."""
    body = json.dumps(chat(model="gpt-4o", stream=stream))
    done = subprocess.run(
        ["curl", "-sS", "--compressed", "-D", "-", "-H", "content-type: application/json",
         "-d", body, bench.simulator.url + CHAT],
        check=True, capture_output=True, timeout=30, text=True,
    )  # fmt: skip
    head, _, text = done.stdout.partition("\n\n")  # newlines were made universal
    assert "content-encoding: " in head
    if stream:
        assert text.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(text)["choices"][0]["message"]["content"] == TEXT.strip()


# -- what upstreams send -------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("coding", CODINGS)
def test_what_an_upstream_compressed_is_read(bench: Bench, lane: str, coding: str) -> None:
    """The client, which asked for nothing, gets text; its usage is read, and the record has it."""
    bench.packing.go_on.set()
    body = json.dumps(chat(coding, model="up")).encode()
    reply = ask_on(bench.gateway.url, lane, body)
    assert reply.status == 200, reply.body
    assert "content-encoding" not in reply.headers
    assert reply.body == WHOLE
    body = json.dumps(chat(coding, model="up", stream=True)).encode()
    reply = ask_on(bench.gateway.url, lane, body)
    assert "content-encoding" not in reply.headers
    # The usage that only the gateway asked for is seen, and taken out.
    assert reply.body == delta("one") + delta("two") + LAST + DONE


@pytest.mark.parametrize("coding", CODINGS)
def test_an_upstreams_event_goes_on_before_the_next(bench: Bench, coding: str) -> None:
    """Nothing waits for the end."""
    bench.packing.go_on.clear()
    with RawClient(bench.gateway.url) as client:
        body = json.dumps(chat(coding, model="up", stream=True)).encode()
        headers = {"host": "localhost", "content-type": "application/json"}
        client.send(build("POST", CHAT, headers, body))
        client.read_head()
        chunks = client.chunks()
        assert next(chunks) == delta("one")
        bench.packing.go_on.set()
        assert b"".join(chunks) == delta("two") + LAST + DONE


@pytest.mark.parametrize("words", ["zstd", "gzip, br", f"{CODINGS[0]} cut", "gzip cut"])
def test_a_coding_that_cannot_be_undone_is_a_bad_gateway(bench: Bench, words: str) -> None:
    """Never bytes that nobody can read."""
    words = words.replace("gzip, br", "gzip,br")
    reply = ask_on(bench.gateway.url, "fast", json.dumps(chat(words, model="up")).encode())
    assert reply.status == 502
    assert "upstream" in error_of(reply)["message"]
