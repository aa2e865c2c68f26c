"""Several tokens in one event."""

from __future__ import annotations

from itertools import count, repeat

from tpo_mp.dialects.canonical import (
    BlockStop,
    ModelReply,
    ReplyChoice,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import aggregate
from tpo_mp.simulator.chunks import chunked
from tpo_mp.simulator.events import events_of

REPLY = ModelReply(
    id="r", model="m", created=1, usage=TokenUsage(1, 2),
    choices=(
        ReplyChoice(
            (ThinkingBlock("one two three", "c2ln"), TextBlock("a b c d e"),
             ToolUseBlock("t", "f", '{"a": "b c"}')),
            "tool_use", None, [{"token": str(n)} for n in range(5)],
        ),
    ),
)  # fmt: skip
TWO = ModelReply(
    id="r", model="m", created=1, usage=TokenUsage(1, 2),
    choices=(ReplyChoice((TextBlock("a b"),), "end"), ReplyChoice((TextBlock("c d"),), "end")),
)  # fmt: skip


def test_joined_events_say_what_the_single_ones_said() -> None:
    """No token is lost, added or moved past the end of its block."""
    single = list(events_of(REPLY, {}, ping=True))
    for sizes in (repeat(1), repeat(3), count(1), repeat(99)):
        joined = list(chunked(iter(single), sizes))
        assert sum(tokens for _, tokens in joined) == sum(tokens for _, tokens in single)
        assert aggregate(e for e, _ in joined) == aggregate(e for e, _ in single)
        others = [event for event, tokens in single if not tokens]
        assert [event for event, tokens in joined if not tokens] == others


def test_sizes_are_kept_within_a_block() -> None:
    """Log probabilities go with their tokens."""
    joined = chunked(events_of(REPLY, {}, ping=False), repeat(2))
    texts = [(event, tokens) for event, tokens in joined if isinstance(event, TextDelta)]
    assert [tokens for _, tokens in texts] == [1, 2, 2]  # the size's rest is the thoughts'
    assert [event.text for event, _ in texts] == ["a", " b c", " d e"]
    assert [len(event.logprobs or ()) for event, _ in texts] == [1, 2, 2]


def test_choices_are_not_joined() -> None:
    """Each has its own events, in turn."""
    joined = list(chunked(events_of(TWO, {}, ping=False), repeat(4)))
    texts = [event for event, _ in joined if isinstance(event, TextDelta)]
    assert [event.choice for event in texts] == [0, 1, 0, 1]
    assert any(isinstance(event, BlockStop) for event, _ in joined)
