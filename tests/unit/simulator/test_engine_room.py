"""An engine in real time: absolute steps, cancelled guests, many tokens at once."""

from __future__ import annotations

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_metrics import EngineMetrics
from tpo_mp.simulator.engine_room import TOLD_AT_ONCE, EngineRoom, Guest
from tpo_mp.simulator.engine_steps import EngineRequest, EngineShape
from tpo_mp.simulator.timer import timer_of


def room_of(world: FakeWorld, **limits: int) -> EngineRoom:
    """A room whose steps take 10 ms."""
    shape = EngineShape(costs=StepCosts(base_s=0.01), **limits)  # type: ignore[arg-type]
    metrics = EngineMetrics(world.env.metrics, shape, "m", "new")
    return EngineRoom(shape, timer_of(world.env), world.env.clock, metrics)


def guest_of(world: FakeWorld, tokens: int, heard: list[float]) -> Guest:
    """A request that notes when it hears of tokens."""
    return Guest(EngineRequest(4, tokens), lambda _: heard.append(round(world.now, 4)))


def test_tokens_come_with_the_steps_and_lateness_does_not_add_up() -> None:
    """A late look finds the tokens of all steps that were due; the next are on the old beat."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    began = world.now
    room.submit(guest_of(world, 6, heard), began)
    for wait_s in (0.0099, 0.0002, 0.0249, 0.0049, 0.0003, 0.02):
        world.advance(wait_s)
    late = [round(at - began, 4) for at in heard]
    assert late == [0.0101, 0.035, 0.035, 0.0402, 0.0602, 0.0602]


def test_factor_stretches_steps() -> None:
    """Half as fast at 2."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    room.factor = 2.0
    room.submit(guest_of(world, 1, heard), world.now)
    world.advance(0.0199)
    assert heard == []
    world.advance(0.0002)
    assert len(heard) == 1


def test_cancelled_guest_hears_no_more_and_an_empty_room_rests() -> None:
    """Its blocks are free at once, in the middle of a step."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    guest = guest_of(world, 100, heard)
    room.submit(guest, world.now)
    world.advance(0.011)
    room.cancel(guest)
    assert room.engine.kv_usage == pytest.approx(0.0)
    world.advance(0.05)
    assert len(heard) == 1
    assert not [entry for entry in world.filed if entry.deadline != float("inf")]
    room.submit(guest_of(world, 1, heard), world.now)
    world.advance(0.011)
    assert len(heard) == 2


def test_many_tokens_are_told_some_at_a_time_but_all_at_their_step() -> None:
    """And the next step does not begin twice."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    count = TOLD_AT_ONCE * 2
    for _ in range(count):
        room.submit(guest_of(world, 2, heard), world.now)
    for _ in range(5):
        world.advance(0.0101)
    assert len(heard) == count * 2
    assert room.engine.counts.steps == 3  # the first came alone, and spoke again with the others


@pytest.mark.parametrize("emptied", [False, True])
def test_frozen_room_tells_nothing_and_goes_on_where_it_was(emptied: bool) -> None:
    """The step under way ends; who comes waits; without blocks all is computed anew."""
    world, heard, later = FakeWorld(), list[float](), list[float]()
    room = room_of(world)
    room.submit(guest_of(world, 4, heard), world.now)
    world.advance(0.0101)
    room.freeze(emptied=emptied)
    room.submit(guest_of(world, 1, later), world.now)
    for _ in range(10):
        world.advance(0.05)
    assert (len(heard), later) == (2, [])
    assert not [entry for entry in world.filed if entry.deadline != float("inf")]
    assert (len(room.engine.running), len(room.engine.waiting)) == ((0, 2) if emptied else (1, 1))
    assert (room.engine.kv_usage == 0) is emptied
    room.thaw()
    for _ in range(10):
        world.advance(0.01)
    assert (len(heard), len(later)) == (4, 1)
    assert room.engine.counts.preemptions == emptied


def test_room_frozen_at_rest_begins_with_the_thaw() -> None:
    """Told twice is told once; who is given up meanwhile is gone."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    room.freeze(emptied=True)
    room.freeze(emptied=False)
    gone, kept = guest_of(world, 1, heard), guest_of(world, 1, heard)
    room.submit(gone, world.now)
    room.submit(kept, world.now)
    room.cancel(gone)
    world.advance(0.05)
    assert heard == []
    room.thaw()
    room.thaw()
    world.advance(0.0101)
    world.advance(0.05)
    assert len(heard) == 1


def test_held_room_lets_those_that_run_end_and_nobody_begin() -> None:
    """Until the thaw; frozen first, it goes on with those that ran."""
    world, heard, later = FakeWorld(), list[float](), list[float]()
    room = room_of(world)
    room.submit(guest_of(world, 3, heard), world.now)
    room.freeze(emptied=False)
    world.advance(0.05)
    room.hold()
    room.submit(guest_of(world, 1, later), world.now)
    for _ in range(10):
        world.advance(0.0101)
    assert (len(heard), later) == (3, [])
    room.thaw()
    world.advance(0.0101)
    world.advance(0.0101)
    assert len(later) == 1


def test_thaw_before_the_step_ended_is_as_if_nothing_was() -> None:
    """No step is left out, none is begun twice."""
    world, heard = FakeWorld(), list[float]()
    room = room_of(world)
    room.submit(guest_of(world, 3, heard), world.now)
    began = world.now
    room.freeze(emptied=True)
    room.thaw()
    for _ in range(6):
        world.advance(0.0051)
    assert [round(at - began, 2) for at in heard] == [0.01, 0.02, 0.03]
