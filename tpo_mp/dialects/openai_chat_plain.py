"""The chat requests that most clients send: messages of one text each, and a few numbers.

They are read in one typed step, several times as fast as field by field.

Invariants: what is read here is what ``openai_chat_body`` would read; anything else, and anything
wrong, is left to it, so that an error has its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from .body import Count, check_json_size
from .canonical import Message, ModelRequest, TextBlock, Trait

_Number: TypeAlias = Count | float


class PlainMessage(Struct, gc=False, forbid_unknown_fields=True):
    """A message of one text."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1)]


class PlainRequest(Struct, gc=False, forbid_unknown_fields=True):
    """A request as it came."""

    model: str
    messages: list[PlainMessage]
    max_tokens: Count | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    n: Count | None = None
    seed: Count | None = None
    user: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(PlainRequest).decode


def read_plain(body: bytes) -> PlainRequest | None:
    """Read a request; None when it is not so plain.  Raises ``InvalidRequest`` for its size."""
    check_json_size(body)
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def plain_request(body: bytes, source: str, names: Mapping[Trait, str]) -> ModelRequest | None:
    """The same in canonical form."""
    asked = read_plain(body)
    if asked is None:
        return None
    system: list[TextBlock] = []
    messages: list[Message] = []
    for i, item in enumerate(asked.messages):
        role, block = item.role, TextBlock(item.content)
        if role == "system" and not messages:
            system.append(block)
        else:
            messages.append(Message(role, (block,), f"messages[{i}]"))
    return ModelRequest(
        source=source,
        names=names,
        model=asked.model,
        system=tuple(system),
        messages=tuple(messages),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        n=asked.n,
        seed=asked.seed,
        user=asked.user,
        stream=bool(asked.stream),
    )
