"""Alarms and the fixed pace, on a clock that is held still."""

from __future__ import annotations

from tests.support.fake_env import FakeWorld
from tpo_mp.simulator.pacing import Alarm, FixedPace


def test_alarm_rings_once_at_its_time() -> None:
    """Not before, and never when stopped."""
    world, rung = FakeWorld(), []
    Alarm.set(world.env, 1.0, lambda: rung.append("first"))
    stop = Alarm.set(world.env, 1.0, lambda: rung.append("stopped"))
    stop()
    world.advance(0.9)
    assert rung == []
    world.advance(0.2)
    world.advance(5)
    assert rung == ["first"]
    stop()


def test_pace_never_drifts() -> None:
    """A late look releases all that was due; the next is due on the old beat."""
    world = FakeWorld()
    released: list[int] = []
    pace = FixedPace(world.env, 0.1)
    pace.begin(released.append)
    assert released == [1]
    world.advance(0.35)
    assert sum(released) == 4
    world.advance(0.049)
    assert sum(released) == 4
    world.advance(0.002)
    assert sum(released) == 5
    pace.stop()
    world.advance(1)
    assert sum(released) == 5
