"""Streams of canonical events: they join to the whole."""

from __future__ import annotations

from tpo_mp.dialects.canonical import (
    ModelReply,
    Ping,
    ReplyChoice,
    ReplyStart,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import aggregate
from tpo_mp.simulator.events import events_of

REPLY = ModelReply(
    id="msg_1",
    model="m",
    choices=(
        ReplyChoice((ThinkingBlock("let me see", "sig"), TextBlock("one two three")), "end"),
        ReplyChoice((ToolUseBlock("t", "get", '{"a": 1}'),), "tool_use"),
    ),
    usage=TokenUsage(3, 9),
)


def test_events_join_to_the_reply() -> None:
    """Blocks, stops and counts."""
    joined = aggregate(event for event, _ in events_of(REPLY, {}, ping=False))
    assert joined.choices == REPLY.choices
    assert joined.usage == REPLY.usage


def test_tokens_are_marked_and_choices_take_turns() -> None:
    """Three thoughts, three words, the pieces of the arguments; nothing else takes time."""
    paced = list(events_of(REPLY, {}, ping=False))
    assert [e.text for e, token in paced if token and isinstance(e, TextDelta)] == [
        "one",
        " two",
        " three",
    ]
    order = [getattr(event, "choice", None) for event, token in paced if token]
    assert order != sorted(order)


def test_ping_and_extra_have_their_places() -> None:
    """Behind the first block's beginning, and in the stream's."""
    events = [event for event, _ in events_of(REPLY, {"a": 1}, ping=True)]
    assert isinstance(events[0], ReplyStart)
    assert events[0].extra == {"a": 1}
    assert isinstance(events[2], Ping)
    assert sum(isinstance(event, Ping) for event in events) == 1
