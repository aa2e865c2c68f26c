"""A whole answer as a stream of canonical events, a token each.

Invariants: the events' texts joined are the answer's; choices take turns token by token; the
second value of a pair says how many tokens the event has, which is what a model takes time for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

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

from .tokens import piece_at

Paced: TypeAlias = tuple[StreamEvent, int]
"""An event, and how many tokens it has."""
_Delta: TypeAlias = TextDelta | ThinkingDelta | ToolInputDelta


class Rest:
    """What a stream has still to say; ``skipped``: no more words, its blocks just end."""

    __slots__ = ("skipped",)

    def __init__(self) -> None:
        self.skipped = False


_ALL: Final = Rest()


def events_of(
    reply: ModelReply,
    extra: dict[str, Any],
    *,
    ping: bool,
    begun: TokenUsage | None = None,
    counted: bool = True,
    rest: Rest = _ALL,
) -> Iterator[Paced]:
    """Every event of a stream of ``reply``, as long as its ``rest`` is not skipped.

    ``extra`` and ``begun`` are fields and counts of its beginning, ``ping`` puts one behind the
    first block's.  Not ``counted``, it tells no usage at its end.
    """
    start = ReplyStart(reply.id, reply.model, reply.created, begun, extra)
    usage = (reply.usage or TokenUsage()) if counted else None
    if len(reply.choices) == 1:
        return _choice(reply.choices[0], 0, rest, start, usage, ping=ping)
    return _in_turns(reply.choices, rest, start, usage, ping=ping)


def _in_turns(
    choices: Sequence[ReplyChoice],
    rest: Rest,
    start: ReplyStart,
    usage: TokenUsage | None,
    *,
    ping: bool,
) -> Iterator[Paced]:
    """Several choices, an event of each after the other."""
    yield start, 0
    turns = [_choice(choice, number, rest) for number, choice in enumerate(choices)]
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
    if usage is not None:
        yield ReplyUsage(usage), 0
    yield ReplyEnd(), 0


def _choice(
    choice: ReplyChoice,
    number: int,
    rest: Rest,
    start: ReplyStart | None = None,
    usage: TokenUsage | None = None,
    *,
    ping: bool = False,
) -> Iterator[Paced]:
    """A choice's events; with ``start`` it is the only one, and these are the whole stream's.

    One generator, since thousands of streams are open at a time and each one is 200 bytes.
    """
    alone = start is not None
    if start is not None:
        yield start, 0
        start = None
    index = 0
    while index < len(choice.blocks):
        block = choice.blocks[index]
        begun, delta, text = _parts(block)
        yield BlockStart(index, begun, number), 0
        if ping:
            ping = False
            yield Ping(), 0
        at = row = 0
        while not rest.skipped and (piece := piece_at(text, at)):
            at += len(piece)
            if choice.logprobs is None or delta is not TextDelta:
                yield delta(index, piece, number), 1
            else:
                yield TextDelta(index, piece, number, choice.logprobs[row : row + 1]), 1
                row += 1
        if isinstance(block, ThinkingBlock) and block.signature:
            yield SignatureDelta(index, block.signature, number), 0
        yield BlockStop(index, number), 0
        index += 1
    yield ReplyStop(choice.stop or "end", choice.stop_sequence, number), 0
    if alone:
        if usage is not None:
            yield ReplyUsage(usage), 0
        yield ReplyEnd(), 0


def _parts(block: Block) -> tuple[Block, type[_Delta], str]:
    """How a block begins, what its pieces come in, and what they are pieces of."""
    if isinstance(block, ToolUseBlock):
        return ToolUseBlock(block.id, block.name, ""), ToolInputDelta, block.arguments
    if isinstance(block, ThinkingBlock):
        return ThinkingBlock(""), ThinkingDelta, block.text
    if isinstance(block, TextBlock | RefusalBlock):
        return type(block)(""), TextDelta, block.text
    return block, TextDelta, ""
