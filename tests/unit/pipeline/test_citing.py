"""Citations in answers: where each dialect has a place for them, however its bytes are cut."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.support.fake_net import Collected, HeldStream
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.citing import cite
from tpo_mp.types import Dialect, Reply

CHAT = b'data: {"a":"data: [DONE]"}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'
MESSAGES = b'event: x\ndata: {"t":"event: message_stop"}\n\nevent: message_stop\ndata: {}\n\n'


def test_a_whole_answer_gets_one_field() -> None:
    """At its top level; what is no object stays as it is."""
    reply = cite(Reply(200, b'{"id": "x" }\n'), Dialect.OPENAI_RESPONSES, b"[1]")
    assert json.loads(reply.body or b"") == {"id": "x", "tpo": {"citations": [1]}}
    assert cite(Reply(200, b"{}"), Dialect.OPENAI_CHAT, b"[]").body == b"{}"
    assert cite(Reply(200, b"[1]"), Dialect.OPENAI_CHAT, b"[]").body == b"[1]"


def fed(dialect: Dialect, stream: bytes, *cuts: int) -> Collected:
    """What a client gets of a stream that is cited in and cut at these places."""
    held, sink = HeldStream(), Collected()
    reply = cite(Reply(200, None, stream=held), dialect, b"[1]")
    assert reply.stream is not None
    reply.stream.attach(sink)
    for start, stop in itertools.pairwise((0, *cuts, len(stream))):
        if stream[start:stop]:
            held.data(stream[start:stop])
    held.end()
    assert sink.ends == [None]
    return sink


@pytest.mark.parametrize(("dialect", "stream", "mark"), [
    (Dialect.OPENAI_CHAT, CHAT, b"\ndata: [DONE]"),
    (Dialect.ANTHROPIC_MESSAGES, MESSAGES, b"\nevent: message_stop"),
    (Dialect.ANTHROPIC_COMPLETE, MESSAGES, b""),
    (Dialect.GEMINI, CHAT, b""),
])  # fmt: skip
def test_a_stream_gets_one_event_before_its_last_or_after_it(
    dialect: Dialect, stream: bytes, mark: bytes
) -> None:
    """Wherever it is cut; not where the words only stand in its text."""
    for at in range(len(stream) + 1):
        for second in (at, min(at + 1, len(stream)), min(at + 7, len(stream))):
            sink = fed(dialect, stream, at, second)
            place = stream.rindex(mark) + 1 if mark else len(stream)
            head, tail = sink.text[:place], sink.text[len(sink.text) - (len(stream) - place) :]
            assert head + tail == stream
            event = sink.text[place : len(sink.text) - len(tail)]
            assert json.loads(event.partition(b"data: ")[2])["tpo"] == {"citations": [1]}
            assert EventCutter().feed(event), "an event of its own"


@pytest.mark.parametrize("name", [b"event: response.%b\n", b""])
@pytest.mark.parametrize("kind", [b"completed", b"incomplete"])
def test_a_response_has_them_where_its_last_event_repeats_it(name: bytes, kind: bytes) -> None:
    """Wherever the stream is cut, in servers' streams with and without names of events."""
    name = name and name % kind
    first = b'event: response.created\ndata: {"type":"response.created","response":{"id":"x"}}\n\n'
    said = b'{"type":"response.%b","response":{"id": "x"},"sequence_number":2}' % kind
    text = b'data: {"type":"response.output_text.delta","delta":"event: response.completed"}\n\n'
    start = first + text
    stream = start + name + b"data: " + said + b"\n\n"
    for at in range(len(stream) + 1):
        got = fed(Dialect.OPENAI_RESPONSES, stream, at, min(at + 9, len(stream))).text
        assert got.startswith(start + name + b"data: ")
        ((_, last),) = EventCutter().feed(got[len(start) :])
        assert json.loads(last) == json.loads(said) | {
            "response": {"id": "x", "tpo": {"citations": [1]}}
        }


def test_a_failed_or_strange_last_event_stays_as_it_is() -> None:
    """Byte for byte, its blank line included."""
    for stream in (
        b'event: response.failed\ndata: {"type":"response.failed","response":{"id":"x"}}\n\n',
        b"event: response.completed\ndata: no JSON\n\n",
        b"event: response.completed\n",
        b'event: response.completed\ndata: {"response"',
        b'event: response.completed\ndata: {"response":[]}\n\nevent: x\ndata: 1\n\n',
    ):
        assert fed(Dialect.OPENAI_RESPONSES, stream).text == stream


def test_what_breaks_off_is_passed_on_as_far_as_it_came() -> None:
    """And its source hears of pauses and of a client that left."""
    held, sink = HeldStream(), Collected()
    reply = cite(Reply(200, None, stream=held), Dialect.OPENAI_CHAT, b"[1]")
    assert reply.stream is not None
    reply.stream.attach(sink)
    reply.stream.pause()
    reply.stream.resume()
    held.data(b"data: [DO")
    assert sink.text == b""
    held.end(BackendFailure("cut"))
    assert sink.text == b"data: [DO"
    assert len(sink.ends) == 1
    reply.stream.cancel()
    assert held.told[-1] == "cancel"


@pytest.mark.parametrize("dialect", [Dialect.GEMINI, Dialect.OPENAI_RESPONSES])
def test_a_stream_that_breaks_off_cites_nothing(dialect: Dialect) -> None:
    """Also where the event would follow the last."""
    held, sink = HeldStream(), Collected()
    reply = cite(Reply(200, None, stream=held), dialect, b"[1]")
    assert reply.stream is not None
    reply.stream.attach(sink)
    held.data(b'data: {"a":1}\n\n')
    held.end(BackendFailure("cut"))
    assert sink.text == b'data: {"a":1}\n\n'
