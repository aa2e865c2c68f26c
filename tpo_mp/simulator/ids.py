"""Ids in the look of each provider's own; no two are alike."""

from __future__ import annotations

import secrets
from typing import Final

from tpo_mp.types import Dialect

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TO_LETTER: Final = bytes(ord(_ALPHABET[byte % 62]) for byte in range(256))
_REPLIES: Final = {
    Dialect.OPENAI_CHAT: ("chatcmpl-", 29),
    Dialect.OPENAI_COMPLETIONS: ("cmpl-", 29),
    Dialect.OPENAI_RESPONSES: ("resp_", 48),
    Dialect.ANTHROPIC_MESSAGES: ("msg_01", 22),
    Dialect.ANTHROPIC_COMPLETE: ("compl_01", 22),
    Dialect.GEMINI: ("", 22),
}
_DRAWN: Final = 8192
_ANTHROPIC: Final = (Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COMPLETE)


def reply_id(dialect: Dialect) -> str:
    """A new reply's id."""
    prefix, length = _REPLIES[dialect]
    if dialect is Dialect.OPENAI_RESPONSES:
        return prefix + secrets.token_hex(length // 2)
    return prefix + _letters(length)


def tool_call_id(dialect: Dialect) -> str:
    """A new tool call's id."""
    return "toolu_01" + _letters(22) if dialect in _ANTHROPIC else "call_" + _letters(24)


class _Letters:
    """Random letters, of which the kernel is asked for some hundred ids at a time."""

    __slots__ = ("_at", "_drawn")

    def __init__(self) -> None:
        self._drawn = ""
        self._at = 0

    def __call__(self, count: int) -> str:
        at = self._at
        if at + count > len(self._drawn):
            self._drawn, at = secrets.token_bytes(_DRAWN).translate(_TO_LETTER).decode(), 0
        self._at = at + count
        return self._drawn[at : at + count]


_letters = _Letters()
