"""Waiting rooms are added up over the host, each by its own rule."""

from __future__ import annotations

from tests.unit.observe.views import FakeSample
from tpo_mp.observe.rooms import Room, rooms


def depth(stage: str, value: float) -> FakeSample:
    """One shard's part."""
    return FakeSample((("stage", stage),), value)


def test_inference_is_one_room_and_the_others_one_per_shard() -> None:
    """Whatever the shards that are up have published."""
    found = rooms([depth("rag", 2), depth("inference", 3)], {"rag": 10, "inference": 20}, 3)
    assert found == [Room("rag", 2, 30), Room("inference", 3, 20)]


def test_parts_of_a_room_are_added_and_strangers_left_out() -> None:
    """A stage that has no room is no reason to fail."""
    found = rooms([depth("rag", 2), depth("rag", 5), depth("attic", 9)], {"rag": 10}, 1)
    assert found == [Room("rag", 7, 10)]
