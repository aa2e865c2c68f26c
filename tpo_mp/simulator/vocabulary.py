"""Numbers for tokens: each holds its token itself, so every process reads every other's.

::

    frames      from 0                  what frames messages and stands for pictures
    blanks      from ``_BLANKS_AT``     one to four of the 29 blanks there are, in base 29
    words       from ``_WORDS_AT``      one to six of A-Z a-z 0-9 in base 62, twice: without
                                        a blank before them, and with one
    letters     from ``_LETTERS_AT``    one or two characters in base 0x110000, twice as well

Invariants: ``text_of(number_of(piece)) == piece`` for every piece that ``tokens.pieces`` cuts;
a number is below 2**53, so JSON and JavaScript hold it; a number that is none's is told.
Known weakness: real vocabularies have numbers of six digits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
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

from .tokens import PER_IMAGE, PER_MESSAGE, PER_REPLY, PER_TOOL, count, each_piece

FRAMES: Final = (
    "<|start|>", "<|end|>", "<|head|>", "<|fill|>", "<|image|>", "<|tool|>",
    "<|system|>", "<|user|>", "<|assistant|>",
)  # fmt: skip
_FRAMES: Final = {text: number for number, text in enumerate(FRAMES)}
_BLANK: Final = "".join(chr(c) for c in range(0x3001) if chr(c).isspace())
_ALNUM: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_BLANK_AT: Final = {c: n for n, c in enumerate(_BLANK, 1)}
_ALNUM_AT: Final = {c: n for n, c in enumerate(_ALNUM, 1)}
_ANY: Final = sys.maxunicode + 1


def _all(base: int, longest: int) -> int:
    return sum(base**length for length in range(1, longest + 1))


_BLANKS_AT: Final = len(FRAMES)
_WORDS_AT: Final = _BLANKS_AT + _all(len(_BLANK), 4)
_LETTERS_AT: Final = _WORDS_AT + 2 * _all(62, 6)
END: Final = _LETTERS_AT + 2 * _all(_ANY, 2)
"""The first number that is no token's."""


@lru_cache(maxsize=8192)
def number_of(piece: str) -> int:
    """The number of one token."""
    spaced = len(piece) > 1 and piece[0] == " " and not piece.isspace()
    bare = piece[1:] if spaced else piece
    if bare.isascii() and bare.isalnum():
        return _WORDS_AT + 2 * (_ranked(bare, _ALNUM_AT, 62) - 1) + spaced
    if bare.isspace() and all(c in _BLANK_AT for c in bare):
        return _BLANKS_AT + _ranked(bare, _BLANK_AT, len(_BLANK)) - 1
    rank = 0
    for character in bare:
        rank = rank * _ANY + ord(character) + 1
    return _LETTERS_AT + 2 * (rank - 1) + spaced


def _ranked(text: str, places: dict[str, int], base: int) -> int:
    rank = 0
    for character in text:
        rank = rank * base + places[character]
    return rank


def text_of(number: int) -> str:
    """The token of a number; raises ``ValueError`` for one that is none's."""
    if not 0 <= number < END:
        raise ValueError(f"{number} is no token of this vocabulary")
    if number < _BLANKS_AT:
        return FRAMES[number]
    if number < _WORDS_AT:
        return "".join(_BLANK[n] for n in _digits(number - _BLANKS_AT + 1, len(_BLANK)))
    if number < _LETTERS_AT:
        rank, spaced = divmod(number - _WORDS_AT, 2)
        bare = "".join(_ALNUM[n] for n in _digits(rank + 1, 62))
    else:
        rank, spaced = divmod(number - _LETTERS_AT, 2)
        bare = "".join(chr(n) for n in _digits(rank + 1, _ANY))
        if any("\ud800" <= c <= "\udfff" for c in bare):
            raise ValueError(f"{number} is no token of this vocabulary")
    return f" {bare}" if spaced else bare


def _digits(rank: int, base: int) -> list[int]:
    """The digits of a rank, from 0; there is no digit for nothing, so each length has its own."""
    found = []
    while rank:
        rank, digit = divmod(rank - 1, base)
        found.append(digit)
    return found[::-1]


def words(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each token of a text."""
    return ((number_of(piece), piece) for piece in each_piece(text))


def conversation(request: ModelRequest, *, opening: bool) -> Iterator[tuple[int, str]]:
    """Those of a conversation, as many as ``tokens.prompt_tokens`` counts.

    ``opening`` begins the answer, which the count does.
    """
    if request.system:
        yield from _frame("<|start|>", "<|system|>", "<|head|>")
        for block in request.system:
            yield from words(block.text)
        yield from _frame("<|end|>")
    for tool in request.tools:
        yield from _frame(*["<|tool|>"] * PER_TOOL)
        yield from words(tool.name)
        yield from words(tool.description or "")
        yield from words(orjson.dumps(tool.schema or tool.raw or {}).decode())
    for message in request.messages:
        yield from _frame("<|start|>", f"<|{message.role}|>", "<|head|>")
        yield from _blocks(message.blocks)
        yield from _frame("<|end|>")
    if opening:
        yield from _frame("<|start|>", "<|assistant|>", "<|head|>")


assert PER_MESSAGE == 4, "a message has four frames"
assert PER_REPLY == 3, "an opening has three"


def _frame(*texts: str) -> Iterator[tuple[int, str]]:
    return ((_FRAMES[text], text) for text in texts)


def _blocks(blocks: tuple[Block, ...]) -> Iterator[tuple[int, str]]:
    for block in blocks:
        if isinstance(block, TextBlock | ThinkingBlock | RefusalBlock):
            yield from words(block.text)
        elif isinstance(block, ToolUseBlock):
            yield from _frame(*["<|tool|>"] * PER_MESSAGE)
            yield from words(block.name)
            yield from words(block.arguments)
        elif isinstance(block, ToolResultBlock):
            yield from _frame(*["<|tool|>"] * PER_MESSAGE)
            yield from _blocks(tuple(block.content))
        elif isinstance(block, ImageBlock):
            yield from _frame(*["<|image|>"] * PER_IMAGE)
        elif isinstance(block, RedactedBlock):
            yield from _frame(*["<|fill|>"] * (count(block.data) // 4))
        else:
            assert isinstance(block, OpaqueBlock)
            yield from words(orjson.dumps(block.raw).decode())
