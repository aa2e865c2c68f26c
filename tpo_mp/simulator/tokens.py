"""Counts tokens by one stated rule, for prompts, answers and stream events alike.

A token is up to six ASCII letters or digits with the blank before them, up to two other letters
with theirs, up to four blanks, or one other character: close to four characters of English.
Of one text only the first ``EXACT`` characters are looked at; the rest counts one in four.

Known weakness: no provider's own tokenizer counts exactly so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import orjson

from tpo_mp.dialects.canonical import (
    Block,
    ImageBlock,
    ModelRequest,
    OpaqueBlock,
    RedactedBlock,
    RefusalBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.types import Dialect

_TOKEN: Final = re.compile(r" ?[A-Za-z0-9]{1,6}| ?[^\W_]{1,2}|\s{1,4}|.", re.DOTALL)
_match: Final = _TOKEN.match
LONGEST: Final = 7
"""Characters of the longest token."""
EXACT: Final = 65_536
REMEMBERED: Final = 1024
"""Characters of the longest text whose count is kept for the next time."""
PER_MESSAGE: Final = 4
"""Tokens that frame one message."""
PER_REPLY: Final = 3
"""Tokens that open the answer."""
PER_IMAGE: Final = 85
PER_TOOL: Final = 8


def pieces(text: str) -> list[str]:
    """Cut a text into its tokens; joined, they are the text."""
    return _TOKEN.findall(text)


def each_piece(text: str) -> Iterator[str]:
    """The same one by one, for whoever holds thousands of texts at a time."""
    at = 0
    while piece := piece_at(text, at):
        at += len(piece)
        yield piece


def piece_at(text: str, at: int) -> str:
    """The token that begins at a place; empty at the end.

    A running ``finditer`` holds 2 KiB for as long as a stream lasts, a position nothing.
    """
    found = _match(text, at)
    return "" if found is None else found[0]


def count(text: str) -> int:
    """Count a text's tokens."""
    return _count_known(text) if len(text) <= REMEMBERED else _count(text)


def _count(text: str) -> int:
    counted = len(_TOKEN.findall(text, 0, EXACT))
    return counted + (max(len(text) - EXACT, 0) + 3) // 4


_count_known = lru_cache(maxsize=1024)(_count)
"""System prompts and fixed answers come again with every request."""


def prompt_tokens(request: ModelRequest) -> int:
    """Count what a request puts in front of the model."""
    if request.source == Dialect.OPENAI_COMPLETIONS:
        return sum(_blocks(message.blocks) for message in request.messages)
    total = PER_REPLY + sum(count(block.text) for block in request.system)
    if request.system:
        total += PER_MESSAGE
    for message in request.messages:
        total += PER_MESSAGE + _blocks(message.blocks)
    for tool in request.tools:
        total += PER_TOOL + count(tool.name) + count(tool.description or "")
        total += count(orjson.dumps(tool.schema or tool.raw or {}).decode())
    form = request.response_format
    if form is not None and form.schema:
        total += count(orjson.dumps(form.schema).decode())
    return total


def _blocks(blocks: Iterable[Block]) -> int:
    return sum(_block(block) for block in blocks)


def _block(block: Block) -> int:
    if isinstance(block, TextBlock | ThinkingBlock | RefusalBlock):
        return count(block.text)
    if isinstance(block, ToolUseBlock):
        return PER_MESSAGE + count(block.name) + count(block.arguments)
    if isinstance(block, ToolResultBlock):
        return PER_MESSAGE + _blocks(block.content)
    if isinstance(block, ImageBlock):
        return PER_IMAGE
    if isinstance(block, RedactedBlock):
        return count(block.data) // 4
    assert isinstance(block, OpaqueBlock)
    return count(orjson.dumps(block.raw).decode())
