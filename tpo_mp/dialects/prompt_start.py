"""How a prompt begins, as a model reads it: the instructions, then what was said, in any dialect.

What two prompts have in common at their start an engine computes once (its prefix cache), so this
is what calls are grouped by.  Names of roles count; what only says how the answer is sampled or
delivered does not.

Invariants: never more than ``most`` bytes; a body that cannot be read, or is longer than
``MAX_BODY_BYTES``, has no beginning; equal prompts in one dialect have equal ones.
Known weakness: tools, which some templates put in front of everything, are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

MAX_BODY_BYTES: Final = 128 << 10
"""Reading more would hold the loop for a millisecond."""

_INSTRUCTIONS: Final = ("system", "instructions", "systemInstruction", "system_instruction")
_SAID: Final = ("messages", "input", "contents", "prompt")


def start_of(body: bytes, most: int) -> bytes:
    """The first ``most`` bytes (UTF-8) of what a request shows its model; empty: nobody can say."""
    if len(body) > MAX_BODY_BYTES:
        return b""
    try:
        asked = orjson.loads(body)
    except ValueError:
        return b""
    if type(asked) is not dict:
        return b""
    start = bytearray()
    for text in _texts(asked):
        # A NUL ends each text, so that no two lists of texts make the same bytes.
        start += text.encode("utf-8", "replace") + b"\0"
        if len(start) >= most:
            break
    return bytes(start[:most])


def _texts(asked: dict[str, Any]) -> Iterator[str]:
    for name in _INSTRUCTIONS:
        if name in asked:
            yield from _words(asked[name])
    for name in _SAID:
        said = asked.get(name)
        if said is not None:
            yield from _words(said)


def _words(given: Any) -> Iterator[str]:
    """The texts of a message, a part, or a list of either, in order."""
    if type(given) is str:
        yield given
    elif type(given) is list:
        for one in given:
            yield from _words(one)
    elif type(given) is dict:
        role = given.get("role")
        if type(role) is str:
            yield role
        for name in ("text", "content", "parts"):
            if name in given:
                yield from _words(given[name])
