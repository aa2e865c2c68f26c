"""An answer that its engine breaks off: what was said of it, ``abort``, and the counts of that.

Invariants: of what is left of a stream, no more tokens pass than had their time; blocks that were
begun are ended and no others are; usage is what the engine computed, shown or not.  What is not
said any more is not gone through, and what was said of a whole answer, some tokens at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from typing import Final, TypeVar

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
from tpo_mp.dialects.translate import StreamAggregator

from .events import Paced, Rest, events_of

T = TypeVar("T")
STEP_EVENTS: Final = 256
"""Events, a token each, that are gone through before others on the loop have their turn."""


def broken_off(events: Iterator[Paced], rest: Rest, left: int, spent: int) -> Iterator[Paced]:
    """The rest of a stream of which ``left`` more tokens may be said, and ``spent`` are counted."""
    unbegun: set[tuple[int, int]] = set()
    rest.skipped = left <= 0
    for event, tokens in events:
        if tokens > left:
            left = 0
            rest.skipped = True
        elif tokens:
            left -= tokens
            rest.skipped = left <= 0
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


def said_of(reply: ModelReply, shown: int, spent: int) -> Generator[None, None, ModelReply]:
    """A whole reply of which only ``shown`` tokens were said; a call that is not whole is none.

    It is made in steps of ``STEP_EVENTS`` events.
    """
    rest, whole = Rest(), StreamAggregator()
    events = broken_off(events_of(reply, {}, ping=False, rest=rest), rest, shown, spent)
    for number, (event, _) in enumerate(events, 1):
        whole.add(event)
        if number % STEP_EVENTS == 0:
            yield
    cut = whole.reply()
    choices = tuple(map(_with_whole_calls, cut.choices, reply.choices))
    return replace(cut, choices=choices, source=reply.source, extra=reply.extra)


async def in_turns(steps: Generator[None, None, T]) -> T:
    """What steps come to, with a turn of others after each."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value
        await asyncio.sleep(0)


def _with_whole_calls(cut: ReplyChoice, whole: ReplyChoice) -> ReplyChoice:
    calls = {block.id: block for block in whole.blocks if isinstance(block, ToolUseBlock)}
    blocks = tuple(
        block
        for block in cut.blocks
        if not isinstance(block, ToolUseBlock) or block.arguments == calls[block.id].arguments
    )
    return replace(cut, blocks=blocks or (TextBlock(""),))
