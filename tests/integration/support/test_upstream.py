"""The faulty upstream does what other tests rely on."""

from __future__ import annotations

import json

import pytest

from tests.support.raw import ClosedEarlyError, RawClient, ask, build, chat
from tests.support.upstream import Mode, Upstream
from tests.support.wait import accepts, wait_for

CHAT = "/v1/chat/completions"


def test_good_behaviour_is_a_valid_reply_and_stream(upstream: Upstream) -> None:
    """Unary and streamed answers carry the same text, and usage when asked."""
    whole = ask(upstream.url, CHAT, chat("hi")).json()
    assert whole["choices"][0]["message"]["content"] == "answer to hi"
    asked = chat("hi", stream=True, stream_options={"include_usage": True})
    *events, usage, done = ask(upstream.url, CHAT, asked).events
    assert done == b"[DONE]"
    assert json.loads(usage)["usage"]["prompt_tokens"] == 7
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "answer to hi"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["cut", "reset"])
def test_broken_replies_end_early(upstream: Upstream, mode: Mode, stream: bool) -> None:
    """No whole reply arrives; the counters call it what it is."""
    upstream.play(mode)
    with pytest.raises(ClosedEarlyError):
        ask(upstream.url, CHAT, chat(stream=stream))


@pytest.mark.parametrize("mode", ["hang", "hang_body", "endless"])
def test_leaving_an_unfinished_reply_counts_as_aborted(upstream: Upstream, mode: Mode) -> None:
    """A client that closes is noticed at once."""
    upstream.play(mode)
    with RawClient(upstream.url) as client:
        body = json.dumps(chat(stream=True)).encode()
        client.send(build("POST", CHAT, {"Host": "x"}, body))
        wait_for(lambda: upstream.counters.open == 1, 5, "the request is open")
    wait_for(lambda: upstream.counters.aborted == 1, 5, "the client's leaving is seen")
    assert upstream.counters.open == 0


def test_queued_scripts_come_first_and_bodies_may_choose(upstream: Upstream) -> None:
    """A queue is used up, metadata overrides for one request, control works over HTTP."""
    upstream.queue("status", 2, status=500)
    assert [ask(upstream.url, CHAT, chat()).status for _ in range(3)] == [500, 500, 200]
    chosen = chat(metadata={"upstream": {"mode": "status", "status": 418}})
    assert ask(upstream.url, CHAT, chosen).status == 418
    assert ask(upstream.url, "/control", {"mode": "html"}).json()["requests"] == 4
    assert ask(upstream.url, CHAT, chat()).headers["content-type"] == "text/html"


def test_refusing_and_accepting_again_keeps_the_port(upstream: Upstream) -> None:
    """A dead upstream refuses connections and comes back where it was."""
    port = upstream.port
    upstream.refuse()
    assert not accepts("127.0.0.1", port)
    upstream.accept()
    assert upstream.port == port
    assert ask(upstream.url, CHAT, chat()).status == 200
