"""Unary calls to upstreams that are asked for streams: one whole reply, one error, or a goodbye."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialects import REPLIES, body, encode
from tests.support.fake_env import make_call
from tests.support.fake_net import HeldStream
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.translate import events_of
from tpo_mp.errors import BackendFailure, BackendTimeout, RateLimited, Rejected
from tpo_mp.pipeline import gathered as module
from tpo_mp.pipeline.answer import TOLD
from tpo_mp.pipeline.gathered import gathered, gathers
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Dialect, Reply, Usage

MEANT = openai_chat.reply_to_canonical(body(REPLIES["openai_chat"]))
STREAM = encode("openai_chat", events_of(MEANT))


class Asked:
    """One call on its way to an upstream the test plays."""

    def __init__(self, **fields: Any) -> None:
        self.call = make_call(body({"model": "m", "messages": []} | fields))
        self.sent: list[Call] = []
        self.cancelled = 0
        self.answer: Promise[Reply] = Promise(self._cancel)
        self.held = HeldStream()
        self.promise = gathered(self._send, self.call)
        self.outcomes: list[Any] = []
        self.promise.then(lambda value, error: self.outcomes.append(value or error))

    def _send(self, call: Call) -> Promise[Reply]:
        self.sent.append(call)
        return self.answer

    def _cancel(self) -> None:
        self.cancelled += 1

    def begin(self) -> Reply:
        """The stream begins."""
        reply = Reply(200, None, stream=self.held, headers=b"x-a: b\r\n", backend="up")
        self.answer.resolve(reply)
        return reply


@pytest.mark.parametrize("size", [1, 33, 1 << 20])
def test_stream_becomes_one_whole_reply(size: int) -> None:
    """With the stream's headers, usage and stop reason."""
    asked = Asked(stream=False, seed=7)
    sent = json.loads(asked.sent[0].body)
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["seed"] == 7
    assert asked.sent[0].usage_wanted
    assert not asked.call.stream
    source = asked.begin()
    for at in range(0, len(STREAM), size):
        asked.held.data(STREAM[at : at + size])
    assert not asked.outcomes
    source.usage, source.finish_reason = Usage(20, 7), "stop"
    asked.held.end()
    (reply,) = asked.outcomes
    assert openai_chat.reply_to_canonical(reply.body).choices == MEANT.choices
    assert (reply.status, reply.content_type, reply.headers) == (200, b"application/json",
                                                                 b"x-a: b\r\n")  # fmt: skip
    assert (reply.usage.completion, reply.finish_reason, reply.backend) == (7, "stop", "up")


@pytest.mark.parametrize("begun", [False, True])
def test_leaving_leaves_the_upstream(begun: bool) -> None:
    """Before and after its first event."""
    asked = Asked()
    if begun:
        asked.begin()
        asked.held.data(STREAM[:100])
    asked.promise.cancel()
    assert (asked.cancelled, asked.held.told) == ((0, ["cancel"]) if begun else (1, []))


def test_stream_that_begins_after_its_caller_left_is_left() -> None:
    """Nobody reads it."""
    asked = Asked()
    asked.promise.cancel_with = None
    asked.promise.cancel()
    asked.begin()
    assert asked.held.told == ["cancel"]


def test_refusal_before_the_stream_is_the_refusal() -> None:
    """As it came."""
    asked = Asked()
    refusal = Rejected("no", body=b'{"error":{}}')
    asked.answer.reject(refusal)
    assert asked.outcomes == [refusal]


@pytest.mark.parametrize("error", [BackendFailure("cut", reason="cut_off"), BackendTimeout("late")])
def test_stream_that_breaks_is_one_error(error: BackendFailure) -> None:
    """And no part of the answer."""
    asked = Asked()
    asked.begin()
    asked.held.data(STREAM[:-20])
    asked.held.end(error)
    assert asked.outcomes == [error]


def test_error_event_is_an_error_with_its_words() -> None:
    """A unary client has not read them yet."""
    asked = Asked()
    asked.begin()
    asked.held.data(openai_chat.error_event(RateLimited("slow down")))
    asked.held.end(BackendFailure("upstream reported an error", body=TOLD))
    (error,) = asked.outcomes
    assert (error.status, error.message, error.body) == (429, "slow down", None)


def test_garbage_and_endless_streams_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream is left at once."""
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 1000)
    for chunk in (b"data: {]\n\n", b"data: {}\n\n" + b":" * 1000):
        asked = Asked()
        asked.begin()
        asked.held.data(chunk)
        assert isinstance(asked.outcomes[0], BackendFailure)
        assert asked.held.told == ["cancel"]
    asked = Asked()
    asked.begin()
    asked.held.end()
    assert asked.outcomes[0].reason == "bad_upstream_body"


def test_only_what_loses_nothing_is_gathered() -> None:
    """Streams are what they are; log probabilities and embeddings are asked for whole."""
    for fields, dialect, stream, right in (
        ({}, Dialect.OPENAI_CHAT, False, True),
        ({}, Dialect.ANTHROPIC_MESSAGES, False, True),
        ({}, Dialect.OPENAI_RESPONSES, False, True),
        ({}, Dialect.OPENAI_COMPLETIONS, False, True),
        ({}, Dialect.OPENAI_CHAT, True, False),
        ({}, Dialect.OPENAI_EMBEDDINGS, False, False),
        ({}, Dialect.ANTHROPIC_COUNT, False, False),
        ({"logprobs": True}, Dialect.OPENAI_CHAT, False, False),
        ({"logprobs": False, "top_logprobs": None}, Dialect.OPENAI_CHAT, False, True),
        ({"logprobs": 0}, Dialect.OPENAI_COMPLETIONS, False, False),
        ({"top_logprobs": 2}, Dialect.OPENAI_RESPONSES, False, False),
        ({"messages": "about logprobs"}, Dialect.OPENAI_CHAT, False, True),
    ):
        call = make_call(body({"model": "m"} | fields))
        call.dialect, call.stream = dialect, stream
        assert gathers(call) is right, (fields, dialect)
