"""The request headers a gateway reads, and what happens when they are nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def relay(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A two-shard gateway in front of a scripted upstream."""
    with Upstream() as upstream:
        args = ("--backend", "openai", "--base-url", upstream.base_url)
        with Gateway(short_tmp / "headers", *args, workers=2) as gateway:
            yield gateway, upstream


@pytest.fixture(autouse=True)
def well_behaved(relay: tuple[Gateway, Upstream]) -> None:
    """Every test starts with an upstream that answers."""
    relay[1].forget()


def test_trace_context_reaches_the_upstream(relay: tuple[Gateway, Upstream]) -> None:
    """A trace goes on through the gateway, whichever shard sends it."""
    gateway, upstream = relay
    for session in ("a", "b", "c", "d"):
        headers = {"traceparent": TRACE, "X-Session-Id": session}
        assert gateway.ask(CHAT, chat(f"trace {session}", model="m"), headers).status == 200
        assert upstream.seen[-1].headers["traceparent"] == TRACE


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_ends_a_silent_call(relay: tuple[Gateway, Upstream], stream: bool) -> None:
    """504 when it passes before the first byte, and the upstream sees its client leave."""
    gateway, upstream = relay
    upstream.play("hang")
    for session in ("a", "b", "c", "d"):
        aborted = upstream.counters.aborted
        reply = gateway.ask(
            CHAT,
            chat(f"late {session}", model="m", stream=stream),
            {"X-TPO-Deadline-Ms": "200", "X-Session-Id": session},
        )
        assert reply.status == 504
        assert reply.json()["error"]["code"] == "deadline_exceeded"
        assert upstream.counters.aborted >= aborted


def test_deadline_ends_a_stream_in_band(relay: tuple[Gateway, Upstream]) -> None:
    """After the first byte the client is told by an event."""
    gateway, upstream = relay
    upstream.play("endless", delay_s=0.02)
    headers = {"X-TPO-Deadline-Ms": "300"}

    def begun() -> RawReply | None:
        reply = gateway.ask(CHAT, chat("endless", model="m", stream=True), headers)
        return None if reply.status == 504 else reply  # it stood still until the deadline

    reply = wait_for(begun, 10, "a stream that began in time")
    assert reply.status == 200
    assert b'"error"' in reply.events[-1]
    assert b"[DONE]" not in reply.events


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-TPO-Deadline-Ms", "soon"),
        ("X-TPO-Deadline-Ms", "0"),
        ("X-TPO-Deadline-Ms", "-5"),
        ("X-TPO-Deadline-Ms", "1.5"),
        ("X-TPO-Deadline-Ms", "9" * 30),
        ("X-TPO-Priority", "urgent"),
        ("X-TPO-Priority", ""),
    ],
)
def test_nonsense_in_a_known_header_is_refused(
    echo_gateway: Gateway, name: str, value: str
) -> None:
    """A header the gateway acts on is right or refused by name, never guessed."""
    reply = echo_gateway.ask(CHAT, chat(), {name: value})
    assert reply.status == 400, reply
    assert reply.json()["error"]["param"] == name.lower()


@pytest.mark.parametrize("priority", ["critical", "High", "NORMAL", "low"])
def test_priorities_are_taken_in_any_case(echo_gateway: Gateway, priority: str) -> None:
    """Four words, however they are written."""
    assert echo_gateway.ask(CHAT, chat(), {"X-TPO-Priority": priority}).status == 200


def test_every_answer_has_its_call_id_once(echo_gateway: Gateway) -> None:
    """Ids differ from call to call and stand in header and body alike."""
    replies = [echo_gateway.ask(CHAT, chat()) for _ in range(5)]
    ids = {reply.headers["x-tpo-call-id"] for reply in replies}
    assert len(ids) == 5
    assert all(reply.headers["x-request-id"] in ids for reply in replies)
    assert all(reply.headers["x-tpo-call-id"] in reply.json()["id"] for reply in replies)
