"""Requests that are made up: whole, varied, the same again."""

from __future__ import annotations

from itertools import islice
from typing import Any

import orjson
import pytest

from tpo_mp.dialects.body import with_fields
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.made_requests import DIALECTS, FAMILIES, ApiFamily, bodies, chat_body
from tpo_mp.simulator.provider import SimulatedProvider
from tpo_mp.types import Dialect


def made(family: ApiFamily, seed: int, count: int) -> list[dict[str, Any]]:
    """The first so many."""
    return list(islice(bodies(family, seed), count))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_simulator_answers_every_one(family: ApiFamily) -> None:
    """Of 300, all."""
    dialect, provider = DIALECTS[family], SimulatedProvider(Speech(strategy="echo"))
    for body in made(family, 5, 300):
        sent = orjson.dumps(body)
        if dialect is Dialect.GEMINI:
            sent = with_fields(sent, model="gemini-2.5-flash")
        answers = list(provider.generate(codec(dialect), dialect, sent, ""))
        assert len(answers) == 1, body


@pytest.mark.parametrize("family", FAMILIES)
def test_they_differ_as_traffic_does_and_come_again(family: ApiFamily) -> None:
    """The n-th is the same whatever their number; another seed has others."""
    many = made(family, 1, 200)
    assert made(family, 1, 20) == many[:20]
    assert made(family, 2, 20) != many[:20]
    assert len({orjson.dumps(body) for body in many}) > 190
    turns = {len(body.get("messages", body.get("contents"))) for body in many}
    assert len(turns) > 2
    assert 0 < sum("tools" in body for body in many) < 100
    if family != "google":
        assert 0 < sum("stream" in body for body in many) < 200
        assert len({body["model"] for body in many}) > 2


def test_a_model_that_is_named_is_asked_by_all() -> None:
    """And one that thinks is told its limit by the name it takes."""
    for body in islice(bodies("openai", 1, "o3"), 20):
        assert body["model"] == "o3"
        assert "max_tokens" not in body
    assert chat_body("anthropic", "claude-opus-5", "hi")["max_tokens"] > 0
