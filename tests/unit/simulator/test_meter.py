"""Counting simulated calls, with labels that clients cannot invent."""

from __future__ import annotations

import pytest

from tests.support.fake_env import make_call
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.simulator.meter import ACTIVE, DURATION, ERRORS, REQUESTS, TOKENS, Meter
from tpo_mp.types import Dialect, Reply, Usage


def test_calls_are_counted_by_route_and_model() -> None:
    """Durations, tokens and refusals too; an unknown model is ``other``."""
    arena = MetricsArena.create(1)
    now = 10.0
    meter = Meter(["gpt-4o"], arena.block(0, 1), lambda: now)
    reply = Reply(200, b"{}")
    reply.usage = Usage(5, 7)
    for model in ("gpt-4o", "invented-1", "invented-2"):
        meter.ended(make_call(b"{}", model=model, upstream_at=9.5), 200, reply)
    refused = make_call(b"{}", model="gpt-4o", upstream_at=9.5, dialect=Dialect.ANTHROPIC_MESSAGES)
    meter.ended(refused, 529, None)
    meter.active.add(1)
    found = {family.name: family.samples for family in arena.collect()}
    arena.close()
    labels = {(dict(s.labels)["endpoint"], dict(s.labels)["model"]): s.value
              for s in found[REQUESTS]}  # fmt: skip
    assert labels == {
        ("/v1/chat/completions", "gpt-4o"): 1,
        ("/v1/chat/completions", "other"): 2,
        ("/v1/messages", "gpt-4o"): 1,
    }
    assert sum(s.sum for s in found[DURATION]) == pytest.approx(2.0)
    assert found[TOKENS][0].value == 21
    assert [(s.labels, s.value) for s in found[ERRORS]] == [((("status", "529"),), 1)]
    assert found[ACTIVE][0].value == 1
