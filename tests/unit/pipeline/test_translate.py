"""A client of one dialect before a backend of another: whole, streamed, refused, broken."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.support.dialects import FOUR, PAIRS, PLAIN, REPLIES, TOOLS, body, decode, encode
from tests.support.fake_env import make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import ModelReply, ReplyFailed, TextBlock
from tpo_mp.dialects.translate import aggregate, events_of
from tpo_mp.errors import BackendFailure, InvalidRequest, RateLimited, TpoError
from tpo_mp.pipeline.answer import TOLD
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.translate import speaking
from tpo_mp.types import Call, Dialect, Reply, Usage

ACROSS = [(client, backend) for client, backend in PAIRS if client != backend]


class Spoken:
    """A backend of one dialect; keeps the call it gets, and answers what it is told."""

    name = "up"

    def __init__(self, *dialects: Dialect, answer: Reply | BaseException | None = None) -> None:
        self.dialects = dialects
        self.asked: Call | None = None
        self.said: Promise[Reply] = Promise()
        self.cancelled = 0
        self.said.cancel_with = self._cancel
        if isinstance(answer, Reply):
            self.said.resolve(answer)
        elif answer is not None:
            self.said.reject(answer)

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Keep the call."""
        self.asked = call
        call.upstream_at, call.first_byte_at = 1.0, 2.0
        return self.said

    def _cancel(self) -> None:
        self.cancelled += 1


def ask(backend: Spoken, call: Call) -> list[tuple[Reply | None, BaseException | None]]:
    """One try; what came of it, once it did."""
    seen: list[tuple[Reply | None, BaseException | None]] = []
    run(speaking(backend, backend.infer)(call), lambda reply, error: seen.append((reply, error)))
    return seen


def call_in(client: str, **more: Any) -> Call:
    """A plain call of a dialect."""
    dialect = Dialect(client)
    return make_call(body(PLAIN[client], **more), dialect=dialect, stream="stream" in more)


def streamed(client: str, backend: str) -> tuple[Reply, HeldStream, Collected]:
    """A translated stream whose upstream the test feeds."""
    held = HeldStream()
    spoken = Spoken(Dialect(backend), answer=Reply(200, None, stream=held))
    ((reply, error),) = ask(spoken, call_in(client, stream=True))
    assert error is None
    assert reply is not None
    assert reply.stream is not None
    sink = Collected()
    reply.stream.attach(sink)
    return reply, held, sink


def words(reply: ModelReply) -> list[str]:
    """The texts of a reply; nothing else may be in it."""
    (choice,) = reply.choices
    assert all(isinstance(block, TextBlock) for block in choice.blocks)
    return [block.text for block in choice.blocks if isinstance(block, TextBlock)]


def upstream_stream(backend: str) -> bytes:
    """The plain reply as a stream of a dialect."""
    canonical = support.codec(backend).reply_to_canonical(body(REPLIES[backend]))
    return encode(backend, events_of(canonical))


@pytest.mark.parametrize("dialect", sorted(FOUR))
def test_same_dialect_passes_the_very_call(dialect: str) -> None:
    """Nothing is copied, decoded or encoded."""
    reply = Reply(200, b"not even JSON")
    backend = Spoken(Dialect(dialect), answer=reply)
    call = call_in(dialect)
    assert ask(backend, call) == [(reply, None)]
    assert backend.asked is call


@pytest.mark.parametrize(("client", "backend"), ACROSS)
def test_whole_call_is_said_in_the_backends_dialect_and_answered_in_the_clients(
    client: str, backend: str
) -> None:
    """Body, dialect, words and usage."""
    answer = Reply(200, body(REPLIES[backend]), headers=b"retry-after: 1\r\nopenai-x: 1\r\n")
    answer.usage, answer.backend = Usage(20, 7), "up"
    spoken = Spoken(Dialect(backend), answer=answer)
    call = call_in(client)
    ((reply, error),) = ask(spoken, call)
    assert error is None
    assert reply is not None
    assert spoken.asked is not None
    assert (spoken.asked.dialect, call.dialect) == (backend, client)
    support.codec(backend).decode_request(spoken.asked.body)
    shown = support.codec(client).reply_to_canonical(reply.body or b"")
    assert words(shown) == ["Hi there"]
    assert reply.usage is answer.usage
    assert reply.headers == b"retry-after: 1\r\n"
    assert (call.upstream_at, call.first_byte_at) == (1.0, 2.0)


@pytest.mark.parametrize(("client", "backend"), ACROSS)
@pytest.mark.parametrize("size", [1, 40, 1 << 20])
def test_stream_is_translated_however_it_is_cut(client: str, backend: str, size: int) -> None:
    """The client's own decoder reads the words and a proper end."""
    reply, held, sink = streamed(client, backend)
    text = upstream_stream(backend)
    for at in range(0, len(text), size):
        held.data(text[at : at + size])
    held.end(None)
    assert sink.ends == [None]
    shown = aggregate(decode(support.codec(client), sink.text))
    assert words(shown) == ["Hi there"]
    assert reply.usage is not None
    assert (reply.usage.prompt, reply.usage.completion) == (20, 7)
    assert reply.finish_reason


@pytest.mark.parametrize(("client", "backend"), ACROSS)
@pytest.mark.parametrize("broken", [True, False])
def test_cut_stream_ends_in_the_clients_own_error_once(
    client: str, backend: str, broken: bool
) -> None:
    """Whether the upstream says so or just stops; nobody tells the client a second time."""
    _, held, sink = streamed(client, backend)
    text = upstream_stream(backend)
    held.data(text[: len(text) // 2])
    held.end(BackendFailure("upstream broke", body=b'{"theirs":1}') if broken else None)
    (ended,) = sink.ends
    assert isinstance(ended, BackendFailure)
    assert ended.body == TOLD
    events = decode(support.codec(client), sink.text)
    assert isinstance(events[-1], ReplyFailed)
    assert sum(isinstance(event, ReplyFailed) for event in events) == 1
    assert b"theirs" not in sink.text


def test_nonsense_in_mid_stream_cancels_the_upstream() -> None:
    """And the client gets its error event."""
    _, held, sink = streamed("anthropic_messages", "openai_chat")
    held.data(b'data: {"choices": "many"}\n\n')
    assert held.told == ["cancel"]
    assert b"event: error\n" in sink.text
    (ended,) = sink.ends
    assert isinstance(ended, TpoError)


def test_stream_obeys_its_client() -> None:
    """Pause, resume and cancel reach the upstream; after cancel nothing is told."""
    reply, held, sink = streamed("anthropic_messages", "openai_chat")
    assert reply.stream is not None
    reply.stream.pause()
    reply.stream.resume()
    reply.stream.cancel()
    assert held.told == ["pause", "resume", "cancel"]
    held.data(upstream_stream("openai_chat"))
    held.end(None)
    assert (sink.text, sink.ends) == (b"", [])


def test_untranslatable_field_is_refused_before_the_upstream_is_asked() -> None:
    """By the client's own name for it."""
    backend = Spoken(Dialect.ANTHROPIC_MESSAGES)
    with pytest.raises(InvalidRequest) as caught:
        ask(backend, call_in("openai_chat", n=2))
    assert (caught.value.reason, caught.value.param) == ("unsupported_translation", "n")
    assert backend.asked is None


@pytest.mark.parametrize(
    ("asked", "spoken"),
    [
        (Dialect.OPENAI_EMBEDDINGS, Dialect.ANTHROPIC_MESSAGES),
        (Dialect.ANTHROPIC_COUNT, Dialect.OPENAI_CHAT),
        (Dialect.OPENAI_CHAT, Dialect.OPENAI_EMBEDDINGS),
    ],
)
def test_what_only_passes_through_is_refused_elsewhere(asked: Dialect, spoken: Dialect) -> None:
    """A vector or a count is nothing that can be said in other words."""
    backend = Spoken(spoken)
    with pytest.raises(InvalidRequest) as caught:
        ask(backend, make_call(b"{}", dialect=asked))
    assert caught.value.reason == "unsupported_api"
    assert backend.asked is None


def test_error_loses_the_other_dialects_body_and_keeps_the_rest() -> None:
    """The client's own envelope is built from its words."""
    failure = RateLimited("slow down", retry_after_s=3, body=b'{"type":"error"}')
    ((reply, error),) = ask(
        Spoken(Dialect.ANTHROPIC_MESSAGES, answer=failure), call_in("openai_chat")
    )
    assert reply is None
    assert error is failure
    assert (failure.body, failure.message, failure.retry_after_s) == (None, "slow down", 3)


def test_reply_that_is_not_in_its_dialect_is_the_upstreams_fault() -> None:
    """Whatever its status said."""
    backend = Spoken(Dialect.ANTHROPIC_MESSAGES, answer=Reply(200, b'{"choices":[]}'))
    ((reply, error),) = ask(backend, call_in("openai_chat"))
    assert reply is None
    assert isinstance(error, BackendFailure)


def test_headers_of_the_clients_api_stay_here() -> None:
    """Trace lines go on, version and betas mean nothing to another API."""
    backend = Spoken(Dialect.OPENAI_CHAT)
    call = call_in("anthropic_messages")
    call.forward = b"traceparent: 00-1\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: a\r\n"
    ask(backend, call)
    assert backend.asked is not None
    assert backend.asked.forward == b"traceparent: 00-1\r\n"
    assert b"anthropic-beta" in call.forward


def test_leaving_cancels_the_upstream() -> None:
    """The promise of a translated call reaches the backend's."""
    backend = Spoken(Dialect.OPENAI_CHAT)
    promise = speaking(backend, backend.infer)(call_in("anthropic_messages"))
    assert isinstance(promise, Promise)
    promise.cancel()
    assert backend.cancelled == 1


def test_usage_is_asked_for_and_shown_only_if_the_client_wants_it() -> None:
    """A chat client that did not ask sees no usage chunk, though the gateway does."""
    reply, held, sink = streamed("openai_chat", "anthropic_messages")
    held.data(upstream_stream("anthropic_messages"))
    held.end(None)
    assert b'"usage":{' not in sink.text
    assert reply.usage is not None


def test_tools_travel_by_their_ids() -> None:
    """A round trip from one dialect in the words of the other."""
    backend = Spoken(Dialect.OPENAI_CHAT)
    call = make_call(body(TOOLS["anthropic_messages"]), dialect=Dialect.ANTHROPIC_MESSAGES)
    ask(backend, call)
    assert backend.asked is not None
    sent = json.loads(backend.asked.body)
    results = [m for m in sent["messages"] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in results] == ["call_1", "call_2"]
    assert sent["parallel_tool_calls"] is False
