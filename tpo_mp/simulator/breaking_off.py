"""An answer that its engine breaks off: what was said of it, ``abort``, and the counts of that.

Invariants: of what is left of a stream, no more tokens pass than had their time; blocks that were
begun are ended and no others are; usage is what the engine computed, shown or not.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from tpo_mp.dialects.canonical import (
    BlockStart,
    BlockStop,
    ModelReply,
    ReplyChoice,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    TextBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import aggregate

from .events import Paced, events_of


def broken_off(events: Iterator[Paced], left: int, spent: int) -> Iterator[Paced]:
    """The rest of a stream of which ``left`` more tokens may be said, and ``spent`` are counted."""
    unbegun: set[tuple[int, int]] = set()
    for event, tokens in events:
        if tokens > left:
            left = 0
        elif tokens:
            left -= tokens
            yield event, tokens
        elif isinstance(event, BlockStart) and left <= 0:
            unbegun.add((event.choice, event.index))
        elif isinstance(event, ReplyStop):
            yield ReplyStop("abort", None, event.choice), 0
        elif isinstance(event, ReplyUsage):
            yield ReplyUsage(spending(event.usage, spent)), 0
        elif isinstance(event, SignatureDelta) and left <= 0:
            continue  # it would be one of thoughts that are not whole
        elif not (isinstance(event, BlockStop) and (event.choice, event.index) in unbegun):
            yield event, 0


def spending(usage: TokenUsage, spent: int) -> TokenUsage:
    """The counts of an answer of which only ``spent`` tokens were computed."""
    return replace(usage, completion=spent, reasoning=min(usage.reasoning, spent))


def said_of(reply: ModelReply, shown: int, spent: int) -> ModelReply:
    """A whole reply of which only ``shown`` tokens were said; a call that is not whole is none."""
    events = broken_off(events_of(reply, {}, ping=False), shown, spent)
    cut = aggregate(event for event, _ in events)
    choices = tuple(map(_with_whole_calls, cut.choices, reply.choices))
    return replace(cut, choices=choices, source=reply.source, extra=reply.extra)


def _with_whole_calls(cut: ReplyChoice, whole: ReplyChoice) -> ReplyChoice:
    calls = {block.id: block for block in whole.blocks if isinstance(block, ToolUseBlock)}
    blocks = tuple(
        block
        for block in cut.blocks
        if not isinstance(block, ToolUseBlock) or block.arguments == calls[block.id].arguments
    )
    return replace(cut, blocks=blocks or (TextBlock(""),))
