"""Every fault on the wire, and a gateway in front of it that keeps its promises."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import ClosedEarlyError, RawClient, build, chat, sse_data

CHAT = "/v1/chat/completions"
SIMULATOR = """
[simulator]
models = ["*"]
strategy = "fixed"
text = "one tw\u00f6 three four five six"
"""
FRONT = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
timeouts = {{ first_byte_s = 2.0, idle_s = 1.0, total_s = 20.0 }}
"""


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers that says the same to everybody."""
    folder = short_tmp / "faults-provider"
    with Gateway(folder, config=SIMULATOR, workers=2, verb="simulate") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def front(provider: Gateway, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway before it, of little patience."""
    config = FRONT.format(url=provider.url)
    with Gateway(short_tmp / "faults-front", config=config, workers=2) as gateway:
        yield gateway


def opened(url: str, fault: str, *, stream: bool = True) -> RawClient:
    """A connection with one request on its way."""
    client = RawClient(url)
    body = chat("hi", model="m", stream=stream, stream_options={"include_usage": True})
    if not stream:
        del body["stream_options"]
    head = {"Host": client.host, "Content-Type": "application/json", "X-Sim-Fault": fault}
    client.send(build("POST", CHAT, head, json.dumps(body).encode()))
    return client


def received(client: RawClient) -> tuple[bytes, str]:
    """All bytes up to the end of the connection, and how it ended."""
    data = b""
    while True:
        try:
            more = client.sock.recv(65536)
        except ConnectionResetError:
            return data, "reset"
        if not more:
            return data, "closed"
        data += more


def pieces(url: str, fault: str) -> list[bytes]:
    """The chunks of a stream that comes to its end."""
    with opened(url, fault) as client:
        status, _, _ = client.read_head()
        assert status == 200
        return list(client.chunks())


def words(data: bytes) -> list[str]:
    """What is said, event by event; what is no JSON is left out."""
    found = []
    for event in sse_data(data):
        try:
            choices = json.loads(event).get("choices") or [{}]
        except ValueError:
            continue
        said = choices[0].get("delta", {}).get("content")
        if said:
            found.append(said)
    return found


@pytest.mark.parametrize(
    ("fault", "end", "said"),
    [
        ("refuse", "reset", 0), ("reset", "reset", 0), ("disconnect", "closed", 0),
        ("reset_after=3", "reset", 3), ("disconnect_after=3", "closed", 3),
    ],
)  # fmt: skip
def test_connection_ends_as_ordered(provider: Gateway, fault: str, end: str, said: int) -> None:
    """With a reset or without, before a byte or after exactly so many tokens."""
    with opened(provider.url, fault) as client:
        data, how = received(client)
    assert how == end
    if end == "closed" or not said:  # a reset may overtake what was sent before it
        assert data.count(b'"content":"') == (said + 1 if said else 0)
        assert bool(data) == bool(said)


@pytest.mark.parametrize("fault", ["hang; for=0.4", "slow; for=0.4"])
@pytest.mark.parametrize("stream", [False, True])
def test_silence_before_the_first_byte(provider: Gateway, fault: str, stream: bool) -> None:
    """As long as ordered, then the answer."""
    began = time.monotonic()
    with opened(provider.url, fault, stream=stream) as client:
        status, _, _ = client.read_head()
    assert status == 200
    assert time.monotonic() - began >= 0.4


def test_stall_is_a_silence_in_the_middle(provider: Gateway) -> None:
    """Two tokens, nothing for a while, the rest."""

    def stalls() -> bool:
        with opened(provider.url, "stall_after=2; for=0.5") as client:
            client.read_head()
            data, gaps, before = b"", [], time.monotonic()
            for chunk in client.chunks():
                now = time.monotonic()
                gaps.append((now - before, len(words(data))))
                before = now
                data += chunk
        assert "".join(words(data)) == "one tw\u00f6 three four five six"
        print(gaps)
        return any(gap >= 0.3 and after == 2 for gap, after in gaps)

    assert any(stalls() for _ in range(5))  # a client that stands still has all at once


def test_truncated_stream_ends_in_good_order(provider: Gateway) -> None:
    """Its last events are missing, and nothing says so."""
    data = b"".join(pieces(provider.url, "truncate_after=3"))
    assert len(words(data)) == 3
    assert b"[DONE]" not in data
    assert b'"finish_reason":"' not in data


def test_one_event_is_broken_doubled_or_emptied(provider: Gateway) -> None:
    """The one after two tokens; the others are as they were."""
    whole = words(b"".join(pieces(provider.url, "split")))
    broken = b"".join(pieces(provider.url, "malformed_after=2"))
    assert words(broken) == whole[:2] + whole[3:]
    doubled = b"".join(pieces(provider.url, "duplicate_after=2"))
    assert words(doubled) == [*whole[:3], *whole[2:]]
    emptied = b"".join(pieces(provider.url, "empty_after=2"))
    assert words(emptied) == whole[:2] + whole[3:]
    assert len(sse_data(emptied)) == len(sse_data(broken)) == len(sse_data(doubled)) - 1


def test_counts_that_do_not_add_up(provider: Gateway) -> None:
    """In the event that carries usage."""
    events = sse_data(b"".join(pieces(provider.url, "wrong_usage")))
    (usage,) = (told["usage"] for e in events if b"[DONE]" not in e
                and (told := json.loads(e)).get("usage"))  # fmt: skip
    assert usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]


def test_writes_have_other_boundaries(provider: Gateway) -> None:
    """Some bytes at a time, inside a character, many events at once: the same words."""
    trickled = pieces(provider.url, "trickle; bytes=300; every=0.01")
    split = pieces(provider.url, "split")
    together = pieces(provider.url, "coalesce; events=4")
    said = {"".join(words(b"".join(chunks))) for chunks in (trickled, split, together)}
    assert said == {"one tw\u00f6 three four five six"}
    assert max(map(len, trickled)) == 300
    assert any(chunk.endswith("\u00f6".encode()[:1]) for chunk in split)
    assert [chunk.count(b"\n\n") for chunk in together[:-1]] == [4] * (len(together) - 1)


FAULTS = (
    "refuse", "reset", "disconnect", "hang", "hang; for=0.1", "slow; for=0.1", "reset_after=3",
    "disconnect_after=3", "stall_after=3", "truncate_after=3", "malformed_after=3", "error_after=3",
    "duplicate_after=3", "empty_after=3", "wrong_usage", "trickle; bytes=200; every=0.01", "split",
    "coalesce", "truncate", "malformed",
)  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_gateway_keeps_its_promises(front: Gateway, fault: str, stream: bool) -> None:
    """A whole reply: an error with its reason, or a stream that is ended or says that it failed."""
    with opened(front.url, fault, stream=stream) as client:
        try:
            reply = client.read_reply("POST")
        except ClosedEarlyError as cut:
            pytest.fail(f"the client was left with {cut.args[0]!r}")
    if reply.status != 200:
        assert reply.status in (502, 504), reply
        assert reply.json()["error"]["code"], reply
        return
    if not stream:
        assert reply.json()["choices"], reply
        return
    events = reply.events
    assert events[-1] == b"[DONE]" or "error" in json.loads(events[-1]), reply.body
    assert reply.body.endswith(b"\n\n")
    if events[-1] == b"[DONE]" and "malformed" not in fault:
        assert set("".join(words(reply.body))) >= set("onetw")
