"""What is left of a limit, as each family's clients read it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tpo_mp.dialects.limit_lines import request_lines, span
from tpo_mp.types import Dialect


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (0.0001, b"1ms"), (0.006, b"6ms"), (1.2, b"1.2s"), (20, b"20s"), (360, b"6m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: bytes) -> None:
    """Nothing that is still to wait is said to be over."""
    assert span(seconds) == text


def test_openai_clients_are_told_a_duration() -> None:
    """Limit, remaining, reset."""
    assert request_lines(Dialect.OPENAI_RESPONSES, 60, 7, 53.0) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 7\r\n"
        b"x-ratelimit-reset-requests: 53s\r\n"
    )


def test_anthropic_clients_are_told_an_instant() -> None:
    """Which is not before the limit is whole again."""
    before = datetime.now(UTC).timestamp()
    lines = request_lines(Dialect.ANTHROPIC_MESSAGES, 60, 7, 20.5).decode().splitlines()
    told = dict(line.split(": ") for line in lines)
    assert told.pop("anthropic-ratelimit-requests-limit") == "60"
    assert told.pop("anthropic-ratelimit-requests-remaining") == "7"
    at = datetime.fromisoformat(told.pop("anthropic-ratelimit-requests-reset")).timestamp()
    assert before + 20 <= at <= datetime.now(UTC).timestamp() + 21
    assert not told


def test_googles_clients_are_told_nothing() -> None:
    """Their provider tells them nothing either."""
    assert request_lines(Dialect.GEMINI, 60, 7, 20.5) == b""
