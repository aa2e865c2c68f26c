"""What engines say is a part of their load, as long as it is fresh."""

from __future__ import annotations

from tests.support.fake_env import FakeWorld
from tpo_mp.pipeline.engine_loads import LOOK_S, EngineLoads
from tpo_mp.pipeline.loads import Loads
from tpo_mp.shm.engine_load import EngineLoad, engine_cells, load_row, slots_cells, slots_row


def test_calls_of_others_count_until_nobody_renews_them() -> None:
    """Our own are counted beside it, exactly."""
    world = FakeWorld()
    loads = Loads(world.env.shares, EngineLoads(world.env))
    loads.of("a").enter()
    assert loads.busy("a") == 1
    cells = engine_cells(EngineLoad(5.0, 2.0, 0.5), world.now + 9.0)
    world.env.ledger.update(load_row("a"), lambda _: cells)
    world.advance(LOOK_S)
    assert loads.busy("a") == 6
    loads.of("a").enter()
    assert loads.busy("a") == 7
    world.advance(10.0)
    assert loads.busy("a") == 2


def test_slots_are_known_until_nobody_renews_them() -> None:
    """Another look is taken after a moment, not for each call."""
    world = FakeWorld()
    loads = EngineLoads(world.env)
    assert loads.slots("a") == 0
    cells = slots_cells(4, world.now + 9.0)
    world.env.ledger.update(slots_row("a"), lambda _: cells)
    assert loads.slots("a") == 0
    world.advance(LOOK_S)
    assert loads.slots("a") == 4
    world.advance(10.0)
    assert loads.slots("a") == 0
