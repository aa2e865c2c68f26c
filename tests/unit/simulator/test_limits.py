"""Rate limit headers in each provider's names."""

from __future__ import annotations

import re

from tpo_mp.simulator.limits import Allowance
from tpo_mp.types import Dialect


def lines(dialect: Dialect, *, spent: bool = False) -> dict[str, str]:
    """The header lines of an answer of 100 tokens."""
    raw = Allowance(600, 6000).lines(dialect, 60, 40, 12.4, spent=spent).decode()
    assert raw.endswith("\r\n")
    return dict(line.split(": ", 1) for line in raw.splitlines())


def test_openai_counts_down_with_durations() -> None:
    """What is left, and how long until it is whole again."""
    found = lines(Dialect.OPENAI_CHAT)
    assert found["x-ratelimit-remaining-requests"] == "599"
    assert found["x-ratelimit-remaining-tokens"] == "5900"
    assert found["x-ratelimit-reset-requests"] == "100ms"
    assert found["x-ratelimit-reset-tokens"] == "1s"
    assert found["openai-processing-ms"] == "12"
    spent = lines(Dialect.OPENAI_CHAT, spent=True)
    assert spent["x-ratelimit-remaining-requests"] == "0"
    assert spent["x-ratelimit-reset-requests"] == "1m0s"


def test_anthropic_counts_four_things_with_instants() -> None:
    """Requests, tokens, and each direction."""
    found = lines(Dialect.ANTHROPIC_MESSAGES)
    assert found["anthropic-ratelimit-input-tokens-remaining"] == "5940"
    assert found["anthropic-ratelimit-output-tokens-remaining"] == "5960"
    reset = found["anthropic-ratelimit-requests-reset"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reset)
    assert lines(Dialect.ANTHROPIC_COUNT, spent=True)["anthropic-ratelimit-tokens-remaining"] == "0"
