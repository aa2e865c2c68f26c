"""The rate limit headers that providers put on every answer.

The limits are the configured ones; what remains is what one request leaves of them.

Source: OpenAI and Anthropic API references, rate limits.
Known weakness: nothing is counted between requests yet, so nothing runs out by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tpo_mp.types import Dialect

_ANTHROPIC = (Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT, Dialect.ANTHROPIC_COMPLETE)
_GOOGLE = (Dialect.GEMINI, Dialect.GEMINI_COUNT, Dialect.GEMINI_EMBEDDINGS)


def is_anthropic(dialect: Dialect) -> bool:
    """Whether a dialect is one of Anthropic's."""
    return dialect in _ANTHROPIC


def is_google(dialect: Dialect) -> bool:
    """Whether a dialect is Gemini's."""
    return dialect in _GOOGLE


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller may use per minute."""

    requests: int
    tokens: int

    def lines(
        self, dialect: Dialect, prompt: int, completion: int, ms: float, *, spent: bool = False
    ) -> bytes:
        """Header lines of an answer that took ``ms``; ``spent``: of one that was refused."""
        requests = 0 if spent else self.requests - 1
        tokens = 0 if spent else max(self.tokens - prompt - completion, 0)
        if is_anthropic(dialect):
            return self._anthropic(requests, tokens, prompt, completion, spent)
        if is_google(dialect):
            return b""  # Google puts none on its answers
        return self._openai(requests, tokens, ms)

    def _openai(self, requests: int, tokens: int, ms: float) -> bytes:
        per_request_s = 60 / self.requests
        per_tokens_s = 60 * (self.tokens - tokens) / self.tokens
        return _OPENAI % (
            max(round(ms), 1),
            self.requests,
            self.tokens,
            requests,
            tokens,
            _span(per_request_s * (self.requests - requests)),
            _span(per_tokens_s),
        )

    def _anthropic(
        self, requests: int, tokens: int, prompt: int, completion: int, spent: bool
    ) -> bytes:
        now = datetime.now(UTC)
        reset = (now + timedelta(seconds=60 if spent else 1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        at = reset.encode()
        rows = (
            (b"requests", self.requests, requests),
            (b"tokens", self.tokens, tokens),
            (b"input-tokens", self.tokens, 0 if spent else max(self.tokens - prompt, 0)),
            (b"output-tokens", self.tokens, 0 if spent else max(self.tokens - completion, 0)),
        )
        return _ORGANIZATION + b"".join(
            _ANTHROPIC_ROW % (what, limit, what, left, what, at) for what, limit, left in rows
        )


def _span(seconds: float) -> bytes:
    """A duration as OpenAI writes it: ``6ms``, ``1.2s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % max(round(seconds * 1e3), 1 if seconds else 0)
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    return b"%dm%ds" % divmod(round(seconds), 60)


_OPENAI = (
    b"openai-organization: org-simulated\r\nopenai-processing-ms: %d\r\n"
    b"openai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-limit-tokens: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\nx-ratelimit-remaining-tokens: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\nx-ratelimit-reset-tokens: %b\r\n"
)
_ORGANIZATION = b"anthropic-organization-id: 00000000-0000-4000-8000-000000000000\r\n"
_ANTHROPIC_ROW = (
    b"anthropic-ratelimit-%b-limit: %d\r\nanthropic-ratelimit-%b-remaining: %d\r\n"
    b"anthropic-ratelimit-%b-reset: %b\r\n"
)
