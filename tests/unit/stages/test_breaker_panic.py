"""What a breaker does when most of a route's backends are open: it asks them all, up to a point."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import BackendFailure, CircuitOpen
from tpo_mp.pipeline.promise import Promise
from tpo_mp.stages.breaker import FEATURE, Breaker, Config
from tpo_mp.types import Call, Reply

NAMES = ("b", "c", "d")
FAULT = BackendFailure("x", reason="upstream_error")


def breaker(**options: Any) -> Breaker:
    """Build it as the registry does."""
    made = FEATURE.build(msgspec.convert(options, Config), FakeWorld().env)
    assert isinstance(made, Breaker)
    return made


def call_of(backend: str, choices: tuple[str, ...] = NAMES) -> Call:
    """A call whose route picks from these."""
    return make_call(b"{}", model="m", backend=backend, choices=choices)


def ask(stage: Breaker, backend: str, outcome: Exception | Reply, times: int = 1) -> None:
    """So many tries with one outcome; raises ``CircuitOpen`` when one is refused."""
    for _ in range(times):
        inner: Promise[Reply] = Promise()
        stage(call_of(backend), lambda _call, inner=inner: inner)  # type: ignore[misc]
        inner.reject(outcome) if isinstance(outcome, Exception) else inner.resolve(outcome)


def blocked(stage: Breaker) -> list[str]:
    """Whom a route leaves out."""
    return [name for name in NAMES if stage.blocked(call_of(name), name)]


def left_s(stage: Breaker, backend: str) -> float:
    """For how long a call without a choice is refused."""
    with pytest.raises(CircuitOpen) as raised:
        stage(call_of(backend, ()), lambda _call: Promise())
    return raised.value.retry_after_s or 0.0


def test_when_most_are_open_all_are_asked() -> None:
    """What such a try finds neither closes a breaker nor makes it wait anew."""
    stage = breaker(panic_share=0.5)
    ask(stage, "b", FAULT, 5)
    assert blocked(stage) == ["b"]
    ask(stage, "c", FAULT, 5)
    assert blocked(stage) == []
    before = left_s(stage, "b")
    ask(stage, "b", FAULT, 10)
    ask(stage, "c", Reply(200, b"{}"), 10)
    assert left_s(stage, "b") == left_s(stage, "c") == before > 0


def test_when_all_are_open_all_are_refused() -> None:
    """At once, with the time to come back: nobody would answer."""
    stage = breaker(panic_share=0.5)
    for name in NAMES:
        ask(stage, name, FAULT, 5)
    assert blocked(stage) == list(NAMES)
    with pytest.raises(CircuitOpen):
        ask(stage, "b", FAULT)


def test_it_is_off_unless_it_is_asked_for() -> None:
    """As it was."""
    stage = breaker()
    for name in NAMES[:2]:
        ask(stage, name, FAULT, 5)
    assert blocked(stage) == ["b", "c"]
    with pytest.raises(CircuitOpen):
        ask(stage, "b", FAULT)
