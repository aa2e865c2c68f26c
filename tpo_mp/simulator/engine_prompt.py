"""Names for the blocks of a prompt: equal beginnings, equal names, in every process.

::

    tools · response format · system · [open message close] · [open message close] · open answer

The tokens are those that ``tokens`` counts, in this order.  A message is framed by three tokens
before it and one after, so an answer that comes back in the next turn's prompt lies where it was
generated, and its blocks are found again.  The first hash holds the salt: whoever has another one
shares nothing.

Invariants: a prompt has as many tokens here as ``prompt_tokens`` says; block ``n``'s name depends
on every token up to its end; at most ``MOST_NAMES`` blocks are named, the rest is always computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final

import orjson

from tpo_mp.dialects.canonical import (
    Block,
    ImageBlock,
    ModelReply,
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

from .tokens import EXACT, PER_IMAGE, PER_MESSAGE, PER_REPLY, PER_TOOL, count, pieces

NAME_BYTES: Final = 8
MOST_NAMES: Final = 2048
"""Blocks of one request that can be found again: 32 768 tokens in blocks of 16."""


def block_names(
    requests: Iterable[ModelRequest], reply: ModelReply | None, block_tokens: int, salt: str
) -> list[bytes]:
    """Name the full blocks of a prompt, and of the answer where its tokens are plain text."""
    tokens = list(prompt_sequence(requests))
    if reply is not None and len(reply.choices) == 1:
        blocks = reply.choices[0].blocks
        if len(blocks) == 1 and isinstance(blocks[0], TextBlock):
            tokens += pieces(blocks[0].text)
    chain = blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=NAME_BYTES)
    names = []
    whole = min(len(tokens) // block_tokens, MOST_NAMES) * block_tokens
    for at in range(0, whole, block_tokens):
        block = "\x1f".join(tokens[at : at + block_tokens])
        chain.update(block.encode("utf-8", "surrogatepass") + b"\x1e")
        names.append(chain.digest())
    return names


def prompt_sequence(requests: Iterable[ModelRequest]) -> Iterator[str]:
    """The tokens of a prompt, or of several one after another."""
    for request in requests:
        if request.source == Dialect.OPENAI_COMPLETIONS:
            for message in request.messages:
                yield from _blocks(message.blocks)
        else:
            yield from _conversation(request)


def _conversation(request: ModelRequest) -> Iterator[str]:
    for tool in request.tools:
        yield from ["tool"] * PER_TOOL
        yield from pieces(tool.name)
        yield from _text(tool.description or "")
        yield from _json(tool.schema or tool.raw or {})
    form = request.response_format
    if form is not None and form.schema:
        yield from _json(form.schema)
    if request.system:
        yield from ["system"] * PER_REPLY
        for block in request.system:
            yield from _text(block.text)
        yield from ["end"] * (PER_MESSAGE - PER_REPLY)
    for message in request.messages:
        yield from [message.role] * PER_REPLY
        yield from _blocks(message.blocks)
        yield from ["end"] * (PER_MESSAGE - PER_REPLY)
    yield from ["assistant"] * PER_REPLY


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        yield from _block(block)


def _block(block: Block) -> Iterable[str]:
    if isinstance(block, TextBlock | ThinkingBlock | RefusalBlock):
        return _text(block.text)
    if isinstance(block, ToolUseBlock):
        return ["call"] * PER_MESSAGE + _text(block.name) + _text(block.arguments)
    if isinstance(block, ToolResultBlock):
        return ["result"] * PER_MESSAGE + list(_blocks(block.content))
    if isinstance(block, ImageBlock):
        return [f"image {hash_of(block.url + block.data)}"] * PER_IMAGE
    if isinstance(block, RedactedBlock):
        return [f"redacted {hash_of(block.data)}"] * (count(block.data) // 4)
    assert isinstance(block, OpaqueBlock)
    return _json(block.raw)


def hash_of(data: str) -> str:
    """A short name for something long."""
    return blake2b(data.encode("utf-8", "surrogatepass"), digest_size=NAME_BYTES).hexdigest()


def _text(text: str) -> list[str]:
    """A text's tokens; of a very long one the rest in fours, as it is counted."""
    if len(text) <= EXACT:
        return pieces(text)
    start = pieces(text[:EXACT])
    return start + [text[at : at + 4] for at in range(EXACT, len(text), 4)]


def _json(value: object) -> list[str]:
    return _text(orjson.dumps(value).decode())
