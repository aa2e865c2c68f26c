"""Alarms and schedules, on a clock that is held still."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.simulator.pacing import Alarm, FixedTiming, SchedulePace, SteadySteps, limited
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import EVERYTHING, Asked, Pace


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


class Through:
    """Some other pace than a schedule, which lets everything go in the end."""

    def __init__(self, pace: Pace) -> None:
        self.begin = pace.begin
        self.stop = pace.stop


@pytest.mark.parametrize("wrap", [Through, lambda pace: pace], ids=["another", "schedule"])
@pytest.mark.parametrize(
    ("first_s", "stop_at", "heard", "let_go"),
    [(2.0, None, 1, False), (0.9, None, 0, True), (2.0, 0.5, 0, False), (1.0, None, None, None)],
)
def test_limited_pace_tells_once_that_it_was_not_through(
    wrap: Callable[[Pace], Pace],
    first_s: float,
    stop_at: float | None,
    heard: int | None,
    let_go: bool | None,
) -> None:
    """Neither when all was let go in time, nor when it was stopped before; once in any case."""
    for look_s in (0.01, 7.0):  # also when nobody looked for a long time
        world, released, told = FakeWorld(), list[int](), list[str]()
        timer = timer_of(world.env)
        inner = wrap(FixedTiming(timer, first_s, 0.0).pace(asked(world, 1)))
        pace = limited(inner, timer, world.now + 1.0, partial(told.append, "late"))
        pace.begin(released.append)
        if stop_at:
            world.advance(stop_at)
            pace.stop()
        for _ in range(4):
            world.advance(look_s)
        world.advance(1.0)
        world.advance(5)
        assert heard is None or len(told) == heard
        assert let_go is None or (bool(released) and not told) is let_go
        assert len(told) + bool(released) <= 2
        pace.stop()


def test_limited_schedule_lets_nothing_go_after_its_end() -> None:
    """A late look releases what was due before the end, and tells of the end then."""
    world, told = FakeWorld(), list[int | str]()
    timer = timer_of(world.env)
    steps = SteadySteps(world.now + 0.3, 0.3, 5)
    pace = limited(SchedulePace(timer, steps), timer, world.now + 1.0, partial(told.append, "late"))
    pace.begin(told.append)
    world.advance(9)
    world.advance(9)
    assert told == [3, "late"]


def test_steady_steps_are_as_many_as_the_tokens() -> None:
    """Each at its own instant, counted from the first."""
    assert list(SteadySteps(5.0, 0.25, 3)) == [(5.0, 1), (5.25, 1), (5.5, 1)]
    assert list(SteadySteps(5.0, 0.25, 0)) == []
