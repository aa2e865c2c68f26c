"""The header lines in which each family says what is left of a limit.

Source: OpenAI and Anthropic API references, rate limits; Google puts none on its answers.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

from tpo_mp.types import Dialect

_ANTHROPIC: Final = frozenset(
    {Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT, Dialect.ANTHROPIC_COMPLETE}
)
_GOOGLE: Final = frozenset({Dialect.GEMINI, Dialect.GEMINI_COUNT, Dialect.GEMINI_EMBEDDINGS})
_OPENAI: Final = (
    b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"
)
_ANTHROPIC_ROW: Final = (
    b"anthropic-ratelimit-%b-limit: %d\r\nanthropic-ratelimit-%b-remaining: %d\r\n"
    b"anthropic-ratelimit-%b-reset: %b\r\n"
)


def request_lines(dialect: Dialect, limit: int, left: int, whole_in_s: float) -> bytes:
    """Lines about a limit of requests, of which ``left`` remain; whole again in ``whole_in_s``."""
    return _row(dialect, b"requests", limit, left, whole_in_s)


def token_lines(dialect: Dialect, limit: int, left: int, whole_in_s: float) -> bytes:
    """The same of tokens."""
    return _row(dialect, b"tokens", limit, left, whole_in_s)


def _row(dialect: Dialect, what: bytes, limit: int, left: int, whole_in_s: float) -> bytes:
    if dialect in _GOOGLE:
        return b""
    if dialect in _ANTHROPIC:
        return anthropic_row(what, limit, left, whole_in_s)
    return _OPENAI % (what, limit, what, left, what, span(whole_in_s))


def anthropic_row(what: bytes, limit: int, left: int, whole_in_s: float) -> bytes:
    """Anthropic's lines about one limit; when it is whole again is an instant, rounded up."""
    whole_at = datetime.now(UTC) + timedelta(seconds=math.ceil(whole_in_s))
    at = whole_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    return _ANTHROPIC_ROW % (what, limit, what, left, what, at)


def span(seconds: float) -> bytes:
    """A duration as OpenAI writes it: ``6ms``, ``1.2s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % max(round(seconds * 1e3), 1 if seconds else 0)
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    return b"%dm%ds" % divmod(round(seconds), 60)
