"""Answers that are told again: only while the cache would find them, in the form asked for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tests.support.dialects import REPLIES, body
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.pipeline import shelf as shelves
from tpo_mp.pipeline.kept import keep, replay
from tpo_mp.pipeline.shelf import AnswerShelf
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.rows import RowTable
from tpo_mp.types import Call, Reply, Usage

CHAT = b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"x"}]}'
WHOLE = body(REPLIES["openai_chat"])
KEYS = [bytes([n]) * 16 for n in range(6)]


class Scene:
    """A shelf over a real cache, small enough to be overwritten."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.table = RowTable.create(8)
        self.segment = CacheSegment.create(1, 1 << 16)
        self.cache = SharedCache(self.segment, self.table, seat=0, clock=self.world.env.clock)
        self.shelf = AnswerShelf(self.cache)
        self.number = 0

    def keep(self, key: bytes, size: int = 0, ttl_s: float = 60.0) -> None:
        """Keep another answer."""
        self.number += 1
        said = WHOLE.replace(b'"id":"', b'"id":"n%d-' % self.number, 1)
        said = said.replace(b"{", b"{" + b" " * size, 1)
        reply = Reply(200, said)
        reply.usage = Usage(3, 4, 1)
        answer = keep(call(), reply, said)
        assert answer is not None
        self.cache.keep(key, answer, ttl_s, self.cache.generation)

    def told(self, key: bytes, asked: Call) -> bytes | None:
        """What it tells."""
        reply = self.shelf.reply(key, asked)
        return None if reply is None else reply.body

    def looked_up(self, key: bytes, asked: Call) -> bytes | None:
        """What a lookup finds."""
        found = self.cache.find(key)
        reply = None if found is None else replay(found, asked)
        return None if reply is None else reply.body


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.segment.close()
    made.table.close()


def call(number: int = 0) -> Call:
    """A call of its own id."""
    return make_call(CHAT, id=f"00000000-0000-8000-8000-{number:012}")


def test_it_tells_what_a_lookup_finds_whatever_happens(scene: Scene, rng: Random) -> None:
    """Answers grow old, are replaced, overwritten and flushed, in any order."""
    told = 0
    for number in range(3000):
        key = rng.choice(KEYS)
        happens = rng.random()
        if happens < 0.1:
            scene.keep(key, rng.randrange(4000), rng.uniform(0.1, 20))
        elif happens < 0.15:
            scene.world.advance(rng.uniform(0, 5))
        elif happens < 0.16:
            scene.cache.flush()
        asked = call(number)
        found = scene.looked_up(key, asked)
        assert scene.told(key, asked) == found
        told += found is not None
    assert told > 300


def test_a_mark_holds_while_the_same_answer_lies_there(scene: Scene) -> None:
    """Not one that was made anew, even with the same bytes."""
    scene.keep(KEYS[0])
    found = scene.cache.find_marked(KEYS[0])
    assert found is not None
    answer, mark = found
    assert scene.cache.still(mark)
    scene.cache.keep(KEYS[1], answer, 60, scene.cache.generation)
    assert scene.cache.still(mark)
    scene.cache.keep(KEYS[0], answer, 60, scene.cache.generation)
    assert not scene.cache.still(mark)
    renewed = scene.cache.find_marked(KEYS[0])
    assert renewed is not None
    assert scene.cache.still(renewed[1])
    scene.world.advance(60)
    assert not scene.cache.still(renewed[1])


def test_forms_are_kept_apart_and_answers_have_their_own_ids(scene: Scene) -> None:
    """A stream is no whole answer, and no two answers have one id."""
    scene.keep(KEYS[0])
    first, second = scene.told(KEYS[0], call(1)), scene.told(KEYS[0], call(2))
    assert first is not None
    assert second is not None
    assert first != second
    assert first.replace(b"0001", b"0002") == second
    streamed = call(3)
    streamed.stream = True
    for wanted in (False, True):
        streamed.usage_wanted = wanted
        told = scene.shelf.told(KEYS[0], streamed)
        assert told is not None
        assert told.stream
        assert (b'"total_tokens"' in told.body("x")) is wanted
    assert len(scene.shelf) == 3


def test_it_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In answers and in bytes; the oldest go, and what is too long is never kept."""
    monkeypatch.setattr(shelves, "MOST", 3)
    for key in KEYS:
        scene.keep(key)
        assert scene.told(key, call()) is not None
    assert len(scene.shelf) == 3
    monkeypatch.setattr(shelves, "MOST_BYTES", 10)
    scene.keep(KEYS[0])
    assert scene.told(KEYS[0], call()) is not None
    assert len(scene.shelf) == 0
    monkeypatch.undo()
    monkeypatch.setattr(shelves, "MOST_EACH_BYTES", 10)
    assert scene.told(KEYS[1], call()) is not None
    assert len(scene.shelf) == 0
