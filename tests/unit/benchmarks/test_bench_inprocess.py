"""The in-process measurement, over a pipeline on paper."""

import asyncio
import contextlib
import json
from functools import partial
from types import SimpleNamespace

import pytest

import tpo_mp
from benchmarks import configs, inprocess


class Paper:
    """Remembers the bodies it was given; every call waits one turn of the loop."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.status = status

    @contextlib.asynccontextmanager
    async def spawn(self, backend: str):
        assert backend == "echo"
        yield self

    async def infer(self, body: bytes) -> SimpleNamespace:
        self.bodies.append(body)
        await asyncio.sleep(0)
        return SimpleNamespace(status=self.status)


def test_every_body_is_a_chat_of_its_own():
    """No two calls share a body, so no cache can help."""
    paper = Paper()
    row = asyncio.run(inprocess.measure(paper.spawn, 0.02))
    assert len(set(paper.bodies)) == len(paper.bodies) >= row["requests"] > 0
    assert json.loads(paper.bodies[0])["model"] == "echo"


def test_failed_call_is_no_measurement():
    """A pipeline that refuses quickly is not fast."""
    with pytest.raises(RuntimeError, match="503"):
        asyncio.run(inprocess.measure(Paper(503).spawn, 0.02))


def test_governed_is_what_its_name_says() -> None:
    """Limits of every level and budgets, and calls that may be remembered."""
    rules = configs.governed_rules()["stages"]
    assert set(rules["rate_limit"]) == {"global", "tenant", "session", "model"}
    assert set(rules["token_budget"]) == {"global", "tenant"}
    row = asyncio.run(
        inprocess.measure(
            partial(tpo_mp.spawn_pipeline, config=configs.governed_rules()), 0.02,
            configs.GOVERNED_EXTRA,
        )
    )  # fmt: skip
    assert row["requests"] > 0
    paper = Paper()
    asyncio.run(inprocess.measure(paper.spawn, 0.01, configs.GOVERNED_EXTRA))
    assert json.loads(paper.bodies[0])["temperature"] == 0
