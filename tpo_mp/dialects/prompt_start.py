"""How a prompt begins, as a model reads it: the instructions, then what was said, in any dialect.

What two prompts have in common at their start an engine computes once (its prefix cache), so this
is what calls are grouped by.  Names of roles count; what only says how the answer is sampled or
delivered does not.

Invariants: never more than ``most`` bytes; a body that cannot be read, or is longer than
``MAX_BODY_BYTES``, has no beginning; equal prompts in one dialect have equal ones; what is nested
deeper than ``MOST_DEEP`` or comes after ``MOST_PARTS`` parts is not looked at.
Known weakness: tools, which some templates put in front of everything, are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

MAX_BODY_BYTES: Final = 128 << 10
"""Reading more would hold the loop for a millisecond."""
MOST_DEEP: Final = 16
MOST_PARTS: Final = 4096

_INSTRUCTIONS: Final = ("system", "instructions", "systemInstruction", "system_instruction")
_SAID: Final = ("messages", "input", "contents", "prompt")
_PARTS: Final = ("text", "content", "parts")


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
    """The texts of messages and parts, in order."""
    levels = [_told(asked, _INSTRUCTIONS + _SAID)]
    for _ in range(MOST_PARTS):
        found: Any = next(levels[-1], levels)
        if found is levels:
            levels.pop()
            if not levels:
                return
        elif type(found) is str:
            yield found
        elif len(levels) == MOST_DEEP:
            continue
        elif type(found) is list:
            levels.append(iter(found))
        elif type(found) is dict:
            role = found.get("role")
            if type(role) is str:
                yield role
            levels.append(_told(found, _PARTS))


def _told(given: dict[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    return iter([found for name in names if (found := given.get(name)) is not None])
