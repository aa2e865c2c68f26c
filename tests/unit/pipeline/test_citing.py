"""Citations in answers: where each dialect has a place for them, however its bytes are cut."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_net import Collected, HeldStream
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


@pytest.mark.parametrize(("dialect", "stream", "mark"), [
    (Dialect.OPENAI_CHAT, CHAT, b"\ndata: [DONE]"),
    (Dialect.ANTHROPIC_MESSAGES, MESSAGES, b"\nevent: message_stop"),
    (Dialect.OPENAI_RESPONSES, CHAT, b""),
])  # fmt: skip
def test_a_stream_gets_one_event_before_its_last(
    dialect: Dialect, stream: bytes, mark: bytes
) -> None:
    """Wherever it is cut; not where the words only stand in its text."""
    for at in range(len(stream) + 1):
        for second in (at, min(at + 1, len(stream)), min(at + 7, len(stream))):
            held, sink = HeldStream(), Collected()
            reply = cite(Reply(200, None, stream=held), dialect, b"[1]")
            assert reply.stream is not None
            reply.stream.attach(sink)
            for part in (stream[:at], stream[at:second], stream[second:]):
                if part:
                    held.data(part)
            held.end()
            if not mark:
                assert sink.text == stream
                continue
            place = stream.rindex(mark) + 1
            head, tail = sink.text[:place], sink.text[len(sink.text) - (len(stream) - place) :]
            assert head + tail == stream
            event = sink.text[place : len(sink.text) - len(tail)]
            assert json.loads(event.partition(b"data: ")[2])["tpo"] == {"citations": [1]}
            assert sink.ends == [None]


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
