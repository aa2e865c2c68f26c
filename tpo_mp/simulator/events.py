"""A whole answer as a stream of canonical events, a token each.

Invariants: the events' texts joined are the answer's; choices take turns token by token; the
second value of a pair says how many tokens the event has, which is what a model takes time for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from tpo_mp.dialects.canonical import (
    Block,
    BlockStart,
    BlockStop,
    ModelReply,
    Ping,
    RefusalBlock,
    ReplyChoice,
    ReplyEnd,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenUsage,
    ToolInputDelta,
    ToolUseBlock,
)

from .tokens import each_piece

Paced: TypeAlias = tuple[StreamEvent, int]
"""An event, and how many tokens it has."""


def events_of(
    reply: ModelReply, extra: dict[str, Any], *, ping: bool, begun: TokenUsage | None = None
) -> Iterator[Paced]:
    """Every event of a stream of ``reply``.

    ``extra`` and ``begun`` are fields and counts of its beginning, ``ping`` puts one behind the
    first block's.
    """
    yield ReplyStart(reply.id, reply.model, reply.created, begun, extra), 0
    turns = [_choice(choice, number) for number, choice in enumerate(reply.choices)]
    while turns:
        for turn in list(turns):
            event = next(turn, None)
            if event is None:
                turns.remove(turn)
            else:
                yield event
                if ping:
                    ping = False
                    yield Ping(), 0
    yield ReplyUsage(reply.usage or TokenUsage()), 0
    yield ReplyEnd(), 0


def _choice(choice: ReplyChoice, number: int) -> Iterator[Paced]:
    for index, block in enumerate(choice.blocks):
        yield from _block(block, index, number, choice)
        yield BlockStop(index, number), 0
    yield ReplyStop(choice.stop or "end", choice.stop_sequence, number), 0


def _block(block: Block, index: int, number: int, choice: ReplyChoice) -> Iterator[Paced]:
    if isinstance(block, ToolUseBlock):
        yield BlockStart(index, ToolUseBlock(block.id, block.name, ""), number), 0
        for piece in each_piece(block.arguments):
            yield ToolInputDelta(index, piece, number), 1
    elif isinstance(block, ThinkingBlock):
        yield BlockStart(index, ThinkingBlock(""), number), 0
        for piece in each_piece(block.text):
            yield ThinkingDelta(index, piece, number), 1
        if block.signature:
            yield SignatureDelta(index, block.signature, number), 0
    elif isinstance(block, TextBlock | RefusalBlock):
        yield BlockStart(index, type(block)(""), number), 0
        rows = choice.logprobs
        for at, piece in enumerate(each_piece(block.text)):
            row = None if rows is None else rows[at : at + 1]
            yield TextDelta(index, piece, number, row), 1
    else:
        yield BlockStart(index, block, number), 0
