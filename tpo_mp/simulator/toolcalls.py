"""Which tools a simulated model calls, and with what.

A tool is called when ``tool_choice`` demands it.  Left to itself, the model calls each tool whose
name shares a word with the newest user message (``get_weather`` and "what is the weather?"), and
none once it has been told a tool's result, so that a loop of calls ends.

Invariants: arguments fit the tool's schema; the same request calls the same tools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import orjson

from tpo_mp.dialects.canonical import (
    ModelRequest,
    TextBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Dialect

from .ids import tool_call_id
from .seeds import stream_of
from .values import fitting

_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_COMMON: Final = frozenset(
    ("get", "set", "the", "and", "for", "all", "list", "find", "make", "run", "call", "tool",
     "function", "with", "from", "my", "new", "add", "do", "to", "of", "a", "in", "by", "is")
)  # fmt: skip
MOST_CALLS: Final = 8


def calls_of(request: ModelRequest, dialect: Dialect, key: bytes) -> tuple[ToolUseBlock, ...]:
    """The calls a request brings about; raises ``InvalidRequest`` when it names no tool of its."""
    chosen = _chosen(request)[:MOST_CALLS]
    return tuple(_call(tool, i, request, dialect, key) for i, tool in enumerate(chosen))


def _chosen(request: ModelRequest) -> list[Tool]:
    functions = [tool for tool in request.tools if tool.raw is None]
    choice = request.tool_choice
    mode = choice.mode if choice is not None else "auto"
    if mode == "named":
        assert choice is not None
        named = [tool for tool in functions if tool.name == choice.name]
        if not named:
            said = f"tool_choice names {choice.name[:64]!r}, which is none of the tools"
            raise InvalidRequest(said, param="tool_choice")
        return named[:1]
    if mode == "required" and not functions:
        raise InvalidRequest("tool_choice demands a call, but there are no tools", param="tools")
    if mode in ("none", "raw") or not functions:
        return []
    alone = request.parallel_tool_calls is False
    meant = _meant(functions, newest_user_text(request))
    if mode == "required":
        return (meant or functions)[: 1 if alone or not meant else None]
    if _was_told(request):
        return []
    return meant[:1] if alone else meant


def _meant(tools: Sequence[Tool], text: str) -> list[Tool]:
    said = _words(text)
    return [tool for tool in tools if (_words(tool.name) - _COMMON) & said]


def _words(text: str) -> set[str]:
    """Words in lower case; a plural counts as its singular."""
    found = {word.lower() for word in _WORD.findall(text)}
    return found | {word[:-1] for word in found if word.endswith("s") and len(word) > 3}


def _was_told(request: ModelRequest) -> bool:
    last = request.messages[-1] if request.messages else None
    return last is not None and any(isinstance(b, ToolResultBlock) for b in last.blocks)


def newest_user_text(request: ModelRequest) -> str:
    """The words of the newest user message that has some."""
    for message in reversed(request.messages):
        if message.role == "user":
            text = "".join(b.text for b in message.blocks if isinstance(b, TextBlock))
            if text:
                return text
    return ""


def _call(
    tool: Tool, number: int, request: ModelRequest, dialect: Dialect, key: bytes
) -> ToolUseBlock:
    param = f"tools[{request.tools.index(tool)}]"
    schema = tool.schema or {"type": "object", "properties": {}}
    value = fitting(schema, stream_of(key, "tool", number), param)
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param}: a tool's arguments must be an object", param=param)
    return ToolUseBlock(tool_call_id(dialect), tool.name, orjson.dumps(value).decode())
