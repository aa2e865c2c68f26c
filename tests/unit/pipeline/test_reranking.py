"""Order by meaning: what a backend is asked, what counts as an answer, and what is done without."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
from array import array
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.config.prices import Prices, PricesSection, TokenPrice
from tpo_mp.errors import CircuitOpen
from tpo_mp.pipeline.promise import Promise
from tpo_mp.pipeline.reranking import MOST_CHARACTERS, Reranker, similarities
from tpo_mp.store.rag_questions import Hit
from tpo_mp.types import Aside, Call, Dialect, Reply, Usage

Vector = list[float]
PRICES = PricesSection(models={"embed": TokenPrice(input=2.0, output=0.0)})
SPENT = {
    "tpo_rag_rerank_tokens_total": 7, "tpo_prompt_tokens_total": 7,
    "orchestrator_inference_cost_usd_total": 14_000,
}  # fmt: skip
"""What the backend of a house asks for an answer, in tokens and billionths of a dollar."""


def packed(vector: Vector) -> str:
    """A vector in base64."""
    return base64.b64encode(array("f", vector).tobytes()).decode()


def listed(*vectors: Any) -> bytes:
    """A reply with these vectors, the last one first."""
    data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data[::-1]}).encode()


class Counted(SilentMetrics):
    """Counters by what they count."""

    def __init__(self) -> None:
        self.series: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault(labels.get("result", name), SilentSeries())


class House:
    """A reranker, and a backend that answers what a test says."""

    def __init__(self, answer: bytes | Exception | None, **options: Any) -> None:
        self.metrics = Counted()
        self.answer = answer
        self.seen: list[Call] = []
        self.told: Promise[Reply] = Promise()
        env = replace(FakeWorld().env, metrics=self.metrics, prices=Prices(PRICES))
        self.call = make_call(b"{}", tenant="t", authorization=b"Bearer x", deadline=math.inf)
        self.reranker = Reranker(
            "vectors", options.get("model", "embed"), options.get("dimensions"), env
        )
        self.reranker.target = self

    def infer(self, call: Call) -> Awaitable[Reply]:
        """The backend."""
        self.seen.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            reply = Reply(200, self.answer)
            reply.usage = Usage(7, 0)
            self.told.resolve(reply)
        return self.told

    def order(self, hits: list[Hit], left_s: float = 5.0) -> list[str]:
        """The order of ids."""
        told = asyncio.run(self.reranker.order(self.call, "why?", hits, left_s))
        return [hit.id for hit in told]

    def counted(self) -> dict[str, float]:
        """What was counted, but for what is 0."""
        found = {name: series.value for name, series in self.metrics.series.items()}
        return {name: value for name, value in found.items() if value}


def hits(count: int = 3) -> list[Hit]:
    """As words found them."""
    return [Hit(f"d{n}", "", 0, 9.0 - n, f"text {n}") for n in range(count)]


def test_the_nearest_comes_first() -> None:
    """One batch with the question first; what is equally near stays in the order of the words."""
    house = House(listed([1, 0], [0, 1], [2, 1], [4, 2]), dimensions=2)
    found = hits()
    assert house.order(found) == ["d1", "d2", "d0"]
    (asked,) = house.seen
    assert json.loads(asked.body) == {
        "model": "embed", "input": ["why?", "text 0", "text 1", "text 2"],
        "encoding_format": "base64", "dimensions": 2,
    }  # fmt: skip
    assert (asked.dialect, asked.model, asked.tenant) == (Dialect.OPENAI_EMBEDDINGS, "embed", "t")
    assert (asked.stream, asked.authorization) == (False, b"Bearer x")
    assert asked.deadline < math.inf
    assert [hit.similarity for hit in found] == [0.0, 0.8944, 0.8944]
    assert house.counted() == {"done": 1, **SPENT}
    assert house.call.aside == Aside(7, pytest.approx(14e-6))


def test_a_model_without_a_price_costs_nothing_and_is_counted() -> None:
    """Its tokens are the call's all the same."""
    house = House(listed([1, 0], [0, 1], [2, 1]), model="unknown")
    house.order(hits(2))
    assert house.call.aside == Aside(7, 0.0)
    counted = house.counted()
    assert (counted["tpo_unpriced_calls_total"], counted["tpo_prompt_tokens_total"]) == (1, 7)


def test_numbers_and_base64_say_the_same() -> None:
    """Whatever the server answers with."""
    draw = random.Random(5)
    vectors = [[draw.uniform(-1, 1) for _ in range(64)] for _ in range(9)]
    plain = asyncio.run(similarities(listed(*vectors), 8))
    assert asyncio.run(similarities(listed(*map(packed, vectors)), 8)) == pytest.approx(plain, 1e-5)
    length = math.hypot
    for near, vector in zip(plain, vectors[1:], strict=True):
        dot = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        assert near == pytest.approx(dot / (length(*vectors[0]) * length(*vector)))


def test_slashes_of_base64_may_be_escaped() -> None:
    """JSON allows it, and some servers do it."""
    vector = [float(n) for n in array("f", b"\xff\xff\xff\x3f" * 2)]
    body = listed(*[packed(vector)] * 2)
    assert b"/" in body
    assert asyncio.run(similarities(body.replace(b"/", b"\\/"), 1)) == pytest.approx([1.0])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1]", b'{"data":[]}', listed([1, 0], [1, 0]), listed(*[[1, 0]] * 4),
        listed([1, 0], [1, 0], [1]), listed([0, 0], [1, 0], [1, 0]), listed([], [], []),
        listed([1, 0], [1, 0], "no base64!"), listed([1, 0], [1, 0], "AAA="), listed(1, 2, 3),
        listed([1, 0], [1, 0], None), listed([1, 0], [1, 0], packed([math.nan, 1])),
        listed([1, 0], [1, 0], packed([math.inf, 1])), listed([1, 0], [1, 0], ["1", "0"]),
        listed([1, 0], [1, 0], [1e999, 0]), listed(*[[1.0] * 9000] * 3),
        listed([1], [1], [1]).replace(b'"index": 2', b'"index": 1'),
    ],
)  # fmt: skip
def test_what_is_no_batch_of_vectors_changes_nothing(body: bytes) -> None:
    """The order of the words stays, and it is counted."""
    house = House(body)
    assert house.order(hits(2)) == ["d0", "d1"]
    assert house.counted() == {"unusable": 1, **SPENT}


def test_a_backend_that_fails_or_is_late_changes_nothing() -> None:
    """A late one is given up."""
    for error in (CircuitOpen("open"), RuntimeError("a defect")):
        refused = House(error)
        assert refused.order(hits()) == ["d0", "d1", "d2"]
        assert refused.counted() == {"failed": 1}
    late = House(None)
    left: list[int] = []
    late.told.cancel_with = lambda: left.append(1)
    assert late.order(hits(), 0.01) == ["d0", "d1", "d2"]
    assert (late.counted(), left) == ({"late": 1}, [1])


def test_a_backend_is_not_asked_without_time_for_it() -> None:
    """The documents took all of it."""
    late = House(listed(*[[1, 0]] * 4))
    assert late.order(hits(), 0.0) == ["d0", "d1", "d2"]
    assert (late.counted(), late.seen) == ({"late": 1}, [])


def test_nothing_is_asked_where_there_is_no_choice() -> None:
    """None or one found."""
    house = House(None)
    assert (house.order([]), house.order(hits(1))) == ([], ["d0"])
    assert house.seen == []


def test_texts_are_bounded() -> None:
    """Whatever a document or a question has."""
    house = House(listed([1, 0], [0, 1], [2, 1]))
    house.order([Hit(f"d{n}", "", 0, 1.0, "x" * 9000) for n in range(2)])
    texts = json.loads(house.seen[0].body)["input"]
    assert max(map(len, texts)) == MOST_CHARACTERS
