"""The cache stage: who is answered from it, whose answer is kept, and who is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.dialects import REPLIES, body, encode
from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.translate import events_of
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.fingerprint import Reuse
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable
from tpo_mp.stages.cache import FEATURE, Config
from tpo_mp.types import Call, Reply, Usage

CHAT = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "x"}]}
WHOLE = body(REPLIES["openai_chat"])
STREAM = encode("openai_chat", events_of(openai_chat.reply_to_canonical(WHOLE)))


class Scene:
    """One stage before a backend, over a real cache."""

    def __init__(self, table: RowTable, **options: Any) -> None:
        self.world = FakeWorld()
        self.segment = CacheSegment.create(1, 1 << 20)
        clock = self.world.env.clock
        cache = SharedCache(self.segment, table, seat=0, clock=clock)
        self.cache = cache
        self.env = replace(self.world.env, cache=cache)
        self.stage = self.build(**options)
        self.asked = 0
        self.answer: Any = Reply(200, WHOLE)
        self.in_coroutine = False

    def build(self, **options: Any) -> Any:
        """Another stage over the same cache."""
        return FEATURE.build(msgspec.convert(options, Config), self.env)

    def proceed(self, call: Call) -> Any:
        """Answer as the test says, at once."""
        self.asked += 1
        out: Promise[Reply] = Promise()
        if isinstance(self.answer, BaseException):
            out.reject(self.answer)
        else:
            out.resolve(self.answer)
        return self.wait(out) if self.in_coroutine else out

    async def wait(self, out: Promise[Reply]) -> Reply:
        """Answer from a coroutine."""
        return await out

    def call(self, stage: Any = None, fields: dict[str, Any] | None = None, **more: Any) -> Call:
        """Run one call; its reply is in ``said``."""
        call = make_call(body(CHAT | (fields or {})), **more)
        out = (stage or self.stage)(call, self.proceed)
        outcome: list[Any] = []
        out.then(lambda reply, error: outcome.append(reply or error))
        self.said = outcome[0]
        return call


@pytest.fixture
def scene(table: RowTable) -> Iterator[Scene]:
    """The shipped options."""
    made = Scene(table)
    yield made
    made.segment.close()


@pytest.fixture
def table() -> Iterator[RowTable]:
    """Whose locks a flush takes."""
    made = RowTable.create(8)
    yield made
    made.close()


@pytest.mark.parametrize("in_coroutine", [False, True])
def test_the_same_question_is_answered_once(scene: Scene, in_coroutine: bool) -> None:
    """And the second time without a backend, whether the first took a task or not."""
    scene.in_coroutine = in_coroutine
    scene.answer.usage = Usage(20, 7, 5)
    assert (scene.call().cache, scene.said.body) == ("miss", WHOLE)
    hit = scene.call(id="call-2")
    assert (hit.cache, hit.attempts, scene.asked) == ("hit", 0, 1)
    assert scene.said.usage.prompt == 20
    assert scene.said.body != WHOLE  # an id of its own
    assert scene.call(fields={"max_tokens": 3}).cache == "miss"


def test_a_stream_is_kept_when_it_is_whole(scene: Scene) -> None:
    """Not before its end, and not when it broke off, was left or grew too long."""
    scene.stage = scene.build(max_answer_bytes=len(STREAM) + 10)
    for end, kept in (("error", False), ("leave", False), ("long", False), ("whole", True)):
        held = HeldStream()
        scene.answer = Reply(200, None, stream=held)
        assert scene.call(stream=True, usage_wanted=True).cache == "miss", end
        sink = Collected()
        scene.said.stream.attach(sink)
        scene.answer.finish_reason = "stop"
        held.data(STREAM[:100])
        assert scene.cache.counts().kept == 0
        if end == "leave":
            scene.said.stream.cancel()
        else:
            held.data(STREAM[100:] + (b": padding\n\n" * 9 if end == "long" else b""))
            held.end(BackendFailure("x", reason="x") if end == "error" else None)
        assert scene.cache.counts().kept == kept, end
    assert scene.call(stream=True, usage_wanted=True).cache == "hit"
    assert scene.call(stream=False).cache == "hit"


def test_errors_are_not_kept(scene: Scene) -> None:
    """The next call asks again."""
    scene.answer = BackendFailure("x", reason="x")
    scene.call()
    assert scene.said is scene.answer
    scene.answer = Reply(200, body({"error": {"message": "x"}}))
    scene.call()
    assert scene.call().cache == "miss"
    assert scene.asked == 3


@pytest.mark.parametrize(
    ("options", "fields", "more"),
    [
        ({}, {"temperature": 0.7}, {}),
        ({}, {}, {"reuse": Reuse.NONE}),
        ({"max_request_bytes": 20}, {}, {}),
    ],
)
def test_calls_that_are_left_alone(
    scene: Scene, options: dict[str, Any], fields: dict[str, Any], more: dict[str, Any]
) -> None:
    """They are not looked up, not kept, and not even watched."""
    stage = scene.build(**options)
    for asked in (1, 2):
        assert scene.call(stage, fields, **more).cache == ""
        assert scene.said is scene.answer
        assert scene.asked == asked
    assert scene.cache.counts() == (0, 0, 0, 0)


def test_all_calls_may_share_answers_when_the_operator_says_so(scene: Scene) -> None:
    """By the option ``match``."""
    stage = scene.build(match="all")
    assert scene.call(stage, {"temperature": 0.7}).cache == "miss"
    assert scene.call(stage, {"temperature": 0.7}).cache == "hit"


def test_a_refresh_asks_again_and_is_kept(scene: Scene) -> None:
    """For everybody who comes later."""
    scene.call()
    scene.answer = Reply(200, WHOLE.replace(b"Hi there", b"Hi again"))
    assert scene.call(reuse=Reuse.REFRESH).cache == "miss"
    assert scene.call().cache == "hit"
    assert b"Hi again" in scene.said.body


def test_answers_grow_old_and_can_be_flushed(scene: Scene) -> None:
    """After ``ttl_s``; and a call that was under way during a flush is not kept."""
    stage = scene.build(ttl_s=5)
    scene.call(stage)
    scene.world.now += 4.9
    assert scene.call(stage).cache == "hit"
    scene.world.now += 0.2
    assert scene.call(stage).cache == "miss"
    held = HeldStream()
    scene.answer = Reply(200, None, stream=held)
    scene.call(stage, {"seed": 1}, stream=True, usage_wanted=True)
    scene.said.stream.attach(Collected())
    scene.answer.finish_reason = "stop"
    scene.cache.flush()
    held.data(STREAM)
    held.end()
    assert scene.call(stage).cache == "miss"
    scene.answer = Reply(200, WHOLE)
    assert scene.call(stage, {"seed": 1}).cache == "miss"


def test_other_tenants_and_other_backends_have_other_answers(scene: Scene) -> None:
    """Nothing crosses; and a change of the configuration is seen at once."""
    scene.call(tenant="a")
    assert scene.call(tenant="b").cache == "miss"
    assert scene.call(tenant="a").cache == "hit"
    one, two = (BackendConfig(name="x", kind="echo", model_map={"m": to}) for to in "ab")
    for backends, cache in (([one], "miss"), ([two], "miss"), ([one], "hit")):
        stage = scene.build()
        stage.meet(backends)
        assert scene.call(stage, tenant="a").cache == cache


def test_what_one_configuration_worked_out_of_a_call_is_no_other_ones(scene: Scene) -> None:
    """The same call, its key known already, finds no answer of other backends."""
    first, second = scene.build(), scene.build()
    first.meet([BackendConfig(name="x", kind="echo", model_map={"m": "a"})])
    second.meet([BackendConfig(name="x", kind="echo", model_map={"m": "b"})])
    call = scene.call(first)
    for stage, cache in ((second, "miss"), (first, "hit"), (second, "hit")):
        stage(call, scene.proceed)
        assert call.cache == cache


class OtherHosts:
    """A second tier that holds what the test says."""

    generation = b"first"
    up = True

    def __init__(self) -> None:
        self.holds: dict[bytes, tuple[bytes, float]] = {}
        self.looks = 0
        self.kept: list[tuple[bytes, bytes, float, bytes | None]] = []

    def find(self, key: bytes, whose: bytes, tell: Any) -> None:
        """Tell it at once."""
        self.looks += 1
        tell(self.holds.get(whose))

    def keep(
        self, key: bytes, whose: bytes, answer: bytes, ttl_s: float, generation: bytes | None
    ) -> None:
        """Note it."""
        self.kept.append((whose, answer, ttl_s, generation))


def test_other_hosts_are_asked_on_a_miss_only(scene: Scene) -> None:
    """What they have is kept here for the time it has left; what they have not is kept there."""
    tier = OtherHosts()
    scene.env = replace(scene.env, tier=tier)  # type: ignore[arg-type]
    scene.stage = scene.build(ttl_s=100)
    assert (scene.call(tenant="a").cache, tier.looks) == ("miss", 1)
    (told,) = tier.kept
    assert told[2:] == (100, b"first")
    assert (scene.call(tenant="a").cache, tier.looks) == ("hit", 1)
    tier.holds[told[0].replace(b"1 a", b"1 b")] = (told[1], 5.0)
    before = scene.cache.counts()
    assert (scene.call(tenant="b").cache, scene.asked) == ("hit", 1)
    assert scene.cache.counts().hits == before.hits + 1
    assert (scene.call(tenant="b").cache, tier.looks) == ("hit", 2)
    scene.world.now += 5.1
    tier.holds.clear()
    assert (scene.call(tenant="b").cache, tier.looks) == ("miss", 3)
    for reuse in (Reuse.REFRESH, Reuse.NONE):
        scene.call(tenant="b", reuse=reuse)
    assert (tier.looks, len(tier.kept)) == (3, 3)
