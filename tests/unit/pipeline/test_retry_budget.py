"""The retry budget: its bound, whoever asks, and what is counted where."""

from __future__ import annotations

import random

from tests.support.fake_env import FakeWorld
from tpo_mp.pipeline.retry_budget import SETTLED_AT, SPAN_S, RetryBudget


def purse(world: FakeWorld, share: float = 0.1, floor: int = 3) -> RetryBudget:
    """One worker's."""
    return RetryBudget(world.env.ledger, world.env.clock, share=share, floor=floor)


def test_all_failing_is_a_share_and_a_floor(rng: random.Random) -> None:
    """Of four workers together, in any mixture, over a minute."""
    world = FakeWorld()
    purses = [purse(world) for _ in range(4)]
    calls = retries = 0
    began = world.now
    while world.now < began + 60:
        mine = rng.choice(purses)
        mine.count()
        calls += 1
        retries += mine.take()
        world.now += rng.expovariate(20)
    assert retries <= 0.1 * calls + 3 * (1 + 60 / SPAN_S)
    assert retries >= 0.08 * calls


def test_calls_that_succeed_pay_for_those_that_fail() -> None:
    """Once they are settled: at once by their own worker, in batches by another."""
    world = FakeWorld()
    one, two = purse(world, floor=0), purse(world, floor=0)
    for _ in range(SETTLED_AT - 1):
        one.count()
    assert not two.take()
    one.count()
    assert [two.take() for _ in range(8)] == [True] * 6 + [False] * 2


def test_old_calls_pay_little() -> None:
    """A quiet hour before an outage is no allowance."""
    world = FakeWorld()
    mine = purse(world, floor=0)
    for _ in range(63):
        mine.count()
        world.now += 60
    assert not mine.take()
