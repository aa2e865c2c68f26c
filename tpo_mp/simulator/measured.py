"""What a benchmark measured: rates, errors, and the spread of latencies, first tokens and gaps.

::

    latency   from sending a request to the last byte of its answer
    TTFT      from there to the first event of a stream that brings words, thoughts or a call
    ITL       between two such events of one stream

Times are of answers that came whole; quantiles are nearest ranks.

Invariants: memory is bounded: beyond ``MOST_KEPT`` numbers, quantiles are those of an even sample.
Known weakness: events that come in one read have no time between them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import orjson

from .load_plan import nearest_rank

MOST_KEPT: Final = 500_000
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Measured:
    """Seconds of one kind, as many as there are."""

    __slots__ = ("_kept", "_random", "count", "most", "total")

    def __init__(self) -> None:
        self._kept = array("d")
        self._random = Random(0)  # noqa: S311 - chooses samples
        self.count = 0
        self.total = 0.0
        self.most = 0.0

    def add(self, seconds: float) -> None:
        """One more; each has the same chance to be among those kept (Vitter's algorithm R)."""
        self.count += 1
        self.total += seconds
        self.most = max(self.most, seconds)
        if len(self._kept) < MOST_KEPT:
            self._kept.append(seconds)
            return
        place = self._random.randrange(self.count)
        if place < MOST_KEPT:
            self._kept[place] = seconds

    def milliseconds(self) -> dict[str, float]:
        """Mean, quantiles and the longest; empty when nothing was measured."""
        if not self.count:
            return {}
        ordered = sorted(self._kept)
        found = {name: nearest_rank(ordered, share) for name, share in _QUANTILES.items()}
        told = {"mean": self.total / self.count, **found, "max": self.most}
        return {name: round(seconds * 1e3, 3) for name, seconds in told.items()}


class AnswerWatch:
    """Reads one answer as it comes: when its words came, and how many tokens it says it has."""

    __slots__ = ("_body", "_last_at", "_left", "_stream", "first_at", "gaps", "tokens")

    MOST_BODY: Final = 4 << 20

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._left = b""
        self._body = b""
        self._last_at = 0.0
        self.first_at = 0.0
        self.gaps: list[float] = []
        self.tokens = 0

    def feed(self, data: bytes, now: float) -> None:
        """Take the next piece of its body."""
        if not self._stream:
            if len(self._body) < self.MOST_BODY:
                self._body += data
            return
        lines = (self._left + data).split(b"\n")
        self._left = lines.pop()[-self.MOST_BODY :]
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def end(self) -> None:
        """The answer is whole."""
        if self._body:
            self._count(_read(self._body))

    def _event(self, data: bytes, now: float) -> None:
        told = _read(data)
        self._count(told)
        if not brings_words(told):
            return
        if self._last_at:
            self.gaps.append(now - self._last_at)
        else:
            self.first_at = now
        self._last_at = now

    def _count(self, told: dict[str, Any]) -> None:
        usage = told.get("usage") or told.get("usageMetadata") or {}
        if not isinstance(usage, dict):
            return
        for name in ("completion_tokens", "output_tokens", "candidatesTokenCount"):
            said = usage.get(name)
            if isinstance(said, int) and said > 0:
                self.tokens = said


def brings_words(event: dict[str, Any]) -> bool:
    """Whether a stream's event has a piece of an answer in it, in any family's shape."""
    if event.get("type") == "content_block_delta":
        return True
    for choice in _tables(event.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(
            delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls")
        ):
            return True
        if choice.get("text"):
            return True
    for candidate in _tables(event.get("candidates")):
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        if any(part.get("text") or part.get("functionCall") for part in _tables(parts)):
            return True
    return False


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _read(data: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


@dataclass(slots=True)
class BenchmarkOutcome:
    """What became of the requests of a benchmark."""

    sent: int = 0
    good: int = 0
    tokens: int = 0
    took_s: float = 0.0
    latency: Measured = field(default_factory=Measured)
    first_token: Measured = field(default_factory=Measured)
    between: Measured = field(default_factory=Measured)
    failures: dict[str, int] = field(default_factory=dict)
    """By status, or by what went wrong."""

    def answered(self, sent_at: float, now: float, watch: AnswerWatch) -> None:
        """One was answered well."""
        self.good += 1
        self.tokens += watch.tokens
        self.latency.add(now - sent_at)
        if watch.first_at:
            self.first_token.add(watch.first_at - sent_at)
        for gap in watch.gaps:
            self.between.add(gap)

    def failed(self, why: str) -> None:
        """One was not."""
        self.failures[why] = self.failures.get(why, 0) + 1

    def report(self) -> dict[str, Any]:
        """Everything, as plain values; times in milliseconds, rates per second."""
        took_s = self.took_s or 1e-9
        return {
            "requests": self.sent,
            "succeeded": self.good,
            "failed": self.sent - self.good,
            "error_rate": round((self.sent - self.good) / self.sent, 6) if self.sent else 0.0,
            "seconds": round(self.took_s, 3),
            "requests_per_s": round(self.good / took_s, 3),
            "tokens_per_s": round(self.tokens / took_s, 3),
            "latency_ms": self.latency.milliseconds(),
            "ttft_ms": self.first_token.milliseconds(),
            "itl_ms": self.between.milliseconds(),
            "errors": dict(sorted(self.failures.items())),
        }
