"""Alarms and schedules, on a clock that is held still."""

from __future__ import annotations

from functools import partial

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.simulator.pacing import Alarm, FixedTiming, LimitedPace, SchedulePace
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import EVERYTHING, Asked


def asked(world: FakeWorld, tokens: int, factor: float = 1.0) -> Asked:
    """A call that arrives now."""
    return Asked(make_call(b"{}"), b"key", world.now, 5, tokens, factor=factor)


def test_alarm_rings_once_at_its_time() -> None:
    """Not before, and never when stopped."""
    world, rung = FakeWorld(), []
    timer = timer_of(world.env)
    Alarm.set(timer, world.now + 1.0, lambda: rung.append("first"))
    stop = Alarm.set(timer, world.now + 1.0, lambda: rung.append("stopped"))
    stop()
    stop()
    world.advance(0.9)
    assert rung == []
    world.advance(0.2)
    world.advance(5)
    assert rung == ["first"]


def test_schedule_never_drifts() -> None:
    """A late look releases all that was due at once; the next is due on the old beat."""
    world = FakeWorld()
    released: list[int] = []
    pace = FixedTiming(timer_of(world.env), 0.0, 0.1).pace(asked(world, 9))
    pace.begin(released.append)
    world.advance(0)
    assert released == [1]
    world.advance(0.35)
    assert released == [1, 3]
    world.advance(0.049)
    assert released == [1, 3]
    world.advance(0.002)
    assert released == [1, 3, 1]
    pace.stop()
    world.advance(1)
    assert released == [1, 3, 1]


def test_schedule_counts_from_arrival() -> None:
    """Time spent on composing the answer is no further wait, and a factor stretches it all."""
    world = FakeWorld()
    released: list[int] = []
    call = asked(world, 2, factor=2.0)
    world.advance(0.15)
    FixedTiming(timer_of(world.env), 0.1, 0.05).pace(call).begin(released.append)
    world.advance(0.04)
    assert released == []
    world.advance(0.02)
    assert released == [1]
    world.advance(0.1)
    assert sum(released) >= EVERYTHING


def test_last_step_lets_everything_go() -> None:
    """Whoever counted one token less than there are is not left waiting."""
    world = FakeWorld()
    released: list[int] = []
    pace = SchedulePace(timer_of(world.env), iter([(world.now + 1, 1)]))
    pace.begin(released.append)
    world.advance(1)
    assert released == [EVERYTHING]
    SchedulePace(timer_of(world.env), iter(())).begin(released.append)
    assert released == [EVERYTHING] * 2


def test_limited_pace_tells_once_that_it_was_not_through() -> None:
    """Neither when all was let go in time, nor when it was stopped before."""
    for first_s, stop_at, told in ((2.0, None, ["late"]), (0.9, None, []), (2.0, 0.5, [])):
        world, heard, released = FakeWorld(), list[str](), list[int]()
        timer = timer_of(world.env)
        inner = FixedTiming(timer, first_s, 0.0).pace(asked(world, 1))
        pace = LimitedPace(inner, timer, world.now + 1.0, partial(heard.append, "late"))
        pace.begin(released.append)
        world.advance(stop_at or 0.95)
        if stop_at:
            pace.stop()
        world.advance(0.1)
        world.advance(5)
        assert heard == told
        assert bool(released) is (stop_at is None)
        pace.stop()
