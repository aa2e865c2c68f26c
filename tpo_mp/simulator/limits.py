"""The rate limit headers that providers put on every answer.

The limits are the configured ones.  Where they are enforced (see ``rate_limits``), what remains is
what the caller has left on this host; otherwise it is what one request leaves and never runs out.

Source: OpenAI and Anthropic API references, rate limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tpo_mp.dialects.limit_lines import anthropic_row, span
from tpo_mp.types import Dialect

_ANTHROPIC = frozenset(
    {Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT, Dialect.ANTHROPIC_COMPLETE}
)
_GOOGLE = frozenset({Dialect.GEMINI, Dialect.GEMINI_COUNT, Dialect.GEMINI_EMBEDDINGS})


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
        if dialect in _ANTHROPIC:
            return self._anthropic(requests, tokens, prompt, completion, spent)
        if dialect in _GOOGLE:
            return b""  # Google puts none on its answers
        return _openai_lines(self.requests, self.tokens, requests, tokens, max(round(ms), 1))

    def _anthropic(
        self, requests: int, tokens: int, prompt: int, completion: int, spent: bool
    ) -> bytes:
        whole_in_s = 60 if spent else 1
        rows = (
            (b"requests", self.requests, requests),
            (b"tokens", self.tokens, tokens),
            (b"input-tokens", self.tokens, 0 if spent else max(self.tokens - prompt, 0)),
            (b"output-tokens", self.tokens, 0 if spent else max(self.tokens - completion, 0)),
        )
        return _ORGANIZATION + b"".join(
            anthropic_row(what, limit, left, whole_in_s) for what, limit, left in rows
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of its limits a caller has used: requests, tokens (of prompts), tokens of answers.

    The third is Anthropic's alone; for others the second holds all tokens.
    ``wait_s`` is how long the answer waits for its turn, ``used`` what is used by then.
    """

    limits: tuple[int, int, int]
    used: tuple[float, float, float]
    wait_s: float = 0.0

    def left(self, place: int) -> int:
        """What remains of a limit."""
        return max(int(self.limits[place] - self.used[place] + 1e-6), 0)

    def whole_in_s(self, place: int) -> float:
        """Seconds until a limit is whole again."""
        return self.used[place] * 60 / self.limits[place]

    def lines(self, dialect: Dialect, ms: float) -> bytes:
        """Header lines of an answer that took ``ms``."""
        if is_google(dialect):
            return b""
        if is_anthropic(dialect):
            return _ORGANIZATION + b"".join(self._row(*row) for row in self._rows())
        return _OPENAI % (
            max(round(ms), 1),
            *self.limits[:2],
            self.left(0),
            self.left(1),
            span(self.whole_in_s(0)),
            span(self.whole_in_s(1)),
        )

    def _rows(self) -> tuple[tuple[bytes, int], ...]:
        """Anthropic's rows; ``tokens`` is the direction that has less left."""
        least = 1 if self.left(1) <= self.left(2) else 2
        return ((b"requests", 0), (b"tokens", least), (b"input-tokens", 1), (b"output-tokens", 2))

    def _row(self, what: bytes, place: int) -> bytes:
        return anthropic_row(what, self.limits[place], self.left(place), self.whole_in_s(place))


@lru_cache(maxsize=1024)
def _openai_lines(
    most_requests: int, most_tokens: int, requests: int, tokens: int, ms: int
) -> bytes:
    """OpenAI's lines; answers made at once have few different ones."""
    return _OPENAI % (
        ms,
        most_requests,
        most_tokens,
        requests,
        tokens,
        span(60 / most_requests * (most_requests - requests)),
        span(60 * (most_tokens - tokens) / most_tokens),
    )


_OPENAI = (
    b"openai-organization: org-simulated\r\nopenai-processing-ms: %d\r\n"
    b"openai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-limit-tokens: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\nx-ratelimit-remaining-tokens: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\nx-ratelimit-reset-tokens: %b\r\n"
)
_ORGANIZATION = b"anthropic-organization-id: 00000000-0000-4000-8000-000000000000\r\n"
