"""The tap of passed-through streams: terminators, usage, reasons, and words that look like them."""

from __future__ import annotations

import pytest

from tests.support.dialects import FOUR, encode
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import ModelReply, ReplyChoice, TextBlock, TokenUsage
from tpo_mp.dialects.translate import events_of

TRAPS = (
    'data: [DONE]\n\nevent: message_stop\n{"type":"message_stop"} response.completed '
    '"usage":{"prompt_tokens":9} "finish_reason":"length" event: error {"type":"error"} "error":'
)
REASONS = {
    "openai_chat": "stop",
    "openai_completions": "stop",
    "anthropic_messages": "end_turn",
    "openai_responses": "completed",
}


def stream(name: str, words: str = TRAPS) -> list[bytes]:
    """The events of a stream whose words look like every dialect's marks."""
    reply = ModelReply(
        id="1", model="m", choices=(ReplyChoice((TextBlock(words),)),), usage=TokenUsage(11, 3)
    )
    return [event + b"\n\n" for event in encode(name, events_of(reply)).split(b"\n\n")[:-1]]


@pytest.mark.parametrize("name", FOUR)
def test_only_the_terminal_event_ends_a_stream(name: str) -> None:
    """Words of the model never count; the last event does, with usage and reason."""
    watch = support.codec(name).watch()
    *before, last = stream(name)
    for event in before:
        watch.feed(event)
    assert not watch.ended
    watch.feed(last)
    assert watch.ended
    assert not watch.failed
    assert watch.finish_reason == REASONS[name]
    assert watch.usage is not None
    assert (watch.usage.prompt, watch.usage.completion) == (11, 3)


@pytest.mark.parametrize("name", FOUR)
def test_the_size_of_reads_does_not_matter(name: str) -> None:
    """One event at a time or all at once."""
    watch = support.codec(name).watch()
    watch.feed(b"".join(stream(name)))
    assert watch.ended
    assert watch.finish_reason == REASONS[name]


@pytest.mark.parametrize("name", FOUR)
def test_the_first_event_with_a_mark_is_read_whole(name: str) -> None:
    """What stands before the mark belongs to it."""
    watch = support.codec(name).watch()
    watch.feed(b"".join(stream(name, "only words")))
    assert watch.ended
    assert watch.finish_reason == REASONS[name]
    assert watch.usage is not None
    assert (watch.usage.prompt, watch.usage.completion) == (11, 3)


@pytest.mark.parametrize("name", FOUR)
def test_broken_events_are_not_the_taps_business(name: str) -> None:
    """What cannot be read passes; whether the stream ended is decided by what can."""
    watch = support.codec(name).watch()
    watch.feed(b'data: {"type":"message_stop\n\ndata: {"usage":{\n\ndata: "response.completed"\n\n')
    assert not watch.ended
