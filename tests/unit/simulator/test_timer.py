"""The worker's timer: order, turns, stopped entries, and the wakers of a real loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from tests.support.fake_env import FakeWorld, SilentSeries
from tpo_mp.simulator.timer import (
    NEVER,
    TURN_S,
    KernelWaker,
    LoopWaker,
    MicroTimer,
    Waker,
    best_waker,
    timer_of,
)


class Beats:
    """An entry that is due every ``gap_s``, so many times, and takes ``work_s`` each."""

    def __init__(self, world: FakeWorld, gap_s: float, times: int, work_s: float = 0.0) -> None:
        self.world = world
        self.gap_s = gap_s
        self.times = times
        self.work_s = work_s
        self.seen: list[float] = []
        self.stopped = False

    def due(self, now: float) -> float:
        """Note when."""
        self.seen.append(now)
        self.world.now += self.work_s
        return now + self.gap_s if len(self.seen) < self.times else NEVER


class Hand:
    """A waker that a test moves."""

    def __init__(self) -> None:
        self.at = NEVER
        self.closed = 0

    def arm(self, at: float) -> None:
        """Keep the instant."""
        self.at = at

    def close(self) -> None:
        """Count."""
        self.closed += 1


def by_hand(world: FakeWorld) -> tuple[MicroTimer, Hand, SilentSeries]:
    """A timer with its waker and its lag."""
    hand, lag = Hand(), SilentSeries()
    timer = MicroTimer(world.env.clock, lag, lambda turn: hand)
    timer.users = 1
    return timer, hand, lag


def test_entries_are_due_in_order_and_never_early() -> None:
    """Each at its deadline, and again when it says; what was late is observed."""
    world = FakeWorld()
    timer, hand, lag = by_hand(world)
    late, soon = Beats(world, 1.0, 1), Beats(world, 0.5, 3)
    timer.add(world.now + 2.0, late)
    timer.add(world.now + 1.0, soon)
    start = world.now
    while hand.at != NEVER:
        world.now = hand.at
        timer.turn()
    assert soon.seen == [start + 1.0, start + 1.5, start + 2.0]
    assert late.seen == [start + 2.0]
    assert lag.value == 4


def test_turn_ends_in_time_for_others() -> None:
    """A flood of due entries is done in several turns, with nothing lost."""
    world = FakeWorld()
    timer, hand, _ = by_hand(world)
    flood = [Beats(world, 1.0, 1, work_s=TURN_S / 4) for _ in range(40)]
    for beats in flood:
        timer.add(world.now, beats)
    turns = 0
    while hand.at != NEVER:
        timer.turn()
        turns += 1
    assert all(len(beats.seen) == 1 for beats in flood)
    assert turns >= 8


def test_stopped_entries_do_not_pile_up() -> None:
    """A thousand given up before their time leave next to nothing in the heap."""
    world = FakeWorld()
    timer, _, _ = by_hand(world)
    kept = Beats(world, 1.0, 1)
    timer.add(world.now + 9.0, kept)
    for _ in range(1000):
        gone = Beats(world, 1.0, 1)
        timer.add(world.now + 600.0, gone)
        gone.stopped = True
        timer.drop()
    assert len(timer._heap) < 200
    world.now += 700
    timer.turn()
    assert len(kept.seen) == 1


def test_workers_backends_share_one_timer() -> None:
    """It goes with the last of them, once nothing waits."""
    world = FakeWorld()
    one = timer_of(world.env)
    assert timer_of(world.env) is one
    assert timer_of(FakeWorld().env) is not one
    timer, hand, _ = by_hand(world)
    timer.add(world.now + 1.0, Beats(world, 1.0, 1))
    timer.close()
    assert hand.closed == 0
    world.now += 2.0
    timer.turn()
    assert hand.closed == 1


@pytest.mark.parametrize("make", [best_waker, LoopWaker])
def test_real_loop_is_woken_on_time(make: Callable[[Callable[[], None]], Waker]) -> None:
    """Never early, every beat, whatever wakes the loop here."""

    async def story() -> None:
        timer = MicroTimer(monotonic, SilentSeries(), make)
        timer.users = 1
        done = asyncio.get_running_loop().create_future()
        start = monotonic()

        class Waits(Beats):
            def due(self, now: float) -> float:
                self.seen.append(now)
                if len(self.seen) < self.times:
                    return start + self.gap_s * (len(self.seen) + 1)
                done.set_result(None)
                return NEVER

        beats = Waits(FakeWorld(), 0.0023, 20)
        timer.add(start + beats.gap_s, beats)
        await asyncio.wait_for(done, 30)
        early = [seen - start - beats.gap_s * (n + 1) for n, seen in enumerate(beats.seen)]
        assert min(early) >= 0
        timer.close()

    asyncio.run(story())


def test_linux_has_the_kernels_own_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the portable build does without."""

    async def kind() -> type:
        waker = best_waker(lambda: None)
        waker.close()
        return type(waker)

    monkeypatch.delenv("TPO_PORTABLE", raising=False)
    if asyncio.run(kind()) is not KernelWaker:
        pytest.skip("no timerfd here")
    monkeypatch.setenv("TPO_PORTABLE", "1")
    assert asyncio.run(kind()) is LoopWaker
