"""The stage for near questions, inside the cache that keeps the answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.dialects import REPLIES, body
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.fingerprint import Reuse
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable
from tpo_mp.stages import cache as cache_stage
from tpo_mp.stages.near_dedup import FEATURE, MOST_IN_BAND, Config
from tpo_mp.types import Call, Reply

WHOLE = body(REPLIES["openai_chat"])
ASKED = "What is the capital of France?"
NEAR = "what is the  capital of France"


class Near:
    """Two processes with the chain cache, near_dedup, backend over one memory."""

    def __init__(self, table: RowTable) -> None:
        self.world = FakeWorld()
        self.segment = CacheSegment.create(2, 1 << 20)
        self.asked = 0
        self.answer: Any = Reply(200, WHOLE)
        self.in_coroutine = False
        caches = [
            SharedCache(self.segment, table, seat=seat, clock=self.world.env.clock)
            for seat in range(2)
        ]
        self.envs = [replace(self.world.env, cache=cache) for cache in caches]
        self.use()

    def use(self, backends: tuple[BackendConfig, ...] = (), **options: Any) -> None:
        """Build both chains with other options."""
        config = msgspec.convert(options, Config)
        self.outer = [cache_stage.FEATURE.build(cache_stage.Config(), env) for env in self.envs]
        self.inner = [FEATURE.build(config, env) for env in self.envs]
        for stage in [*self.outer, *self.inner]:
            stage.meet(backends)

    def ask(self, words: Any, seat: int = 0, fields: Any = None, **facts: Any) -> Call:
        """Run one call in a process; its reply is in ``said``."""
        chat = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": words}]}
        call = make_call(body(chat | (fields or {})), **facts)

        def backend(asked: Call) -> Any:
            self.asked += 1
            out: Promise[Reply] = Promise()
            failed = isinstance(self.answer, BaseException)
            out.reject(self.answer) if failed else out.resolve(self.answer)
            return _wait(out) if self.in_coroutine else out

        out = self.outer[seat](call, lambda inner: self.inner[seat](inner, backend))
        outcome: list[Any] = []
        out.then(lambda reply, error: outcome.append(reply or error))
        (self.said,) = outcome
        return call


async def _wait(out: Promise[Reply]) -> Reply:
    return await out


@pytest.fixture
def near() -> Iterator[Near]:
    """The shipped options."""
    table = RowTable.create(8)
    made = Near(table)
    yield made
    made.segment.close()
    table.close()


@pytest.mark.parametrize("in_coroutine", [False, True])
def test_a_near_question_is_answered_by_the_other_process(near: Near, in_coroutine: bool) -> None:
    """Under an id of its own, and not kept as its own answer."""
    near.in_coroutine = in_coroutine
    assert near.ask(ASKED).cache == "miss"
    told = near.ask(NEAR, 1, id="call-2")
    assert (told.cache, told.attempts, near.asked) == ("semantic", 0, 1)
    assert msgspec.json.decode(near.said.body)["choices"] == msgspec.json.decode(WHOLE)["choices"]
    assert near.ask(NEAR, 1).cache == "semantic"
    assert near.ask(ASKED, 1).cache == "hit"


@pytest.mark.parametrize(
    ("words", "fields", "facts"),
    [
        ("What is the capital of Germany?", {}, {}),
        (NEAR, {"temperature": 1}, {}),
        (NEAR, {"max_tokens": 5}, {}),
        (NEAR, {}, {"tenant": "other"}),
        (NEAR, {}, {"authorization": b"Bearer other"}),
        (NEAR, {"model": "n"}, {"model": "n"}),
        (NEAR, {}, {"reuse": Reuse.NONE}),
        (NEAR, {}, {"reuse": Reuse.REFRESH}),
        ([{"type": "text", "text": NEAR}, {"type": "text", "text": ""}], {}, {}),
    ],
)
def test_others_are_asked_for_themselves(
    near: Near, words: Any, fields: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Another question, another context, and whoever wants no earlier answer."""
    near.ask(ASKED)
    near.ask(words, 1, fields, **facts)
    assert near.asked == 2


def test_numbers_are_never_near(near: Near) -> None:
    """Their fingerprints are two bits apart."""
    near.ask("How many users signed up in 2023?")
    near.ask("How many users signed up in 2024?")
    assert near.asked == 2
    near.ask("How many users signed up, in 2023")
    assert near.asked == 2


def test_errors_teach_nothing(near: Near) -> None:
    """There is no answer to give."""
    near.answer = BackendFailure("x", reason="x")
    near.ask(ASKED)
    near.answer = Reply(200, WHOLE)
    near.ask(NEAR)
    assert near.asked == 2


def test_limits_are_kept(near: Near) -> None:
    """Longer questions, and those of before."""
    near.use(max_text_bytes=len(NEAR) - 1)
    near.ask(ASKED)
    near.ask(NEAR)
    assert near.asked == 2
    near.use(window_s=5.0)
    near.ask("Who wrote the Iliad?")
    near.world.now += 6
    near.ask("who wrote the Iliad")
    assert near.asked == 4


def test_other_backends_answer_for_themselves(near: Near) -> None:
    """A change of the config is another answer."""
    near.ask(ASKED)
    near.use((BackendConfig(name="b", kind="echo"),))
    near.ask(NEAR)
    assert near.asked == 2


def test_a_band_is_bounded(near: Near) -> None:
    """The youngest are known: here all have one fingerprint but another sign in them."""
    signs = "#$%&*+/<=>@^|~§°€£¥¢¬¶"
    texts = [f"is it {sign} or not" for sign in signs]
    for text in texts:
        near.ask(text)
    assert near.asked == len(texts)
    before = near.asked
    near.ask(texts[0].upper().lower() + ".")
    assert near.asked == before + 1, "longer ago than a band remembers"
    assert len(texts) > MOST_IN_BAND
