"""Ids in the look of each provider's own; no two are alike."""

from __future__ import annotations

import secrets
from typing import Final

from tpo_mp.types import Dialect

_ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TO_LETTER: Final = bytes(_ALPHABET[byte % 62] for byte in range(256))
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
    return prefix + _letters(length).decode()


def chat_id() -> bytes:
    """A new chat's id."""
    return b"chatcmpl-" + _letters(29)


def tool_call_id(dialect: Dialect) -> str:
    """A new tool call's id."""
    prefix, length = ("toolu_01", 22) if dialect in _ANTHROPIC else ("call_", 24)
    return prefix + _letters(length).decode()


class _Letters:
    """Random letters, of which the kernel is asked for some hundred ids at a time."""

    __slots__ = ("_at", "_drawn")

    def __init__(self) -> None:
        self._drawn = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        at = self._at
        end = self._at = at + count
        if end > len(self._drawn):
            self._drawn = secrets.token_bytes(_DRAWN).translate(_TO_LETTER)
            at, end = 0, count
            self._at = end
        return self._drawn[at:end]


_letters = _Letters()
