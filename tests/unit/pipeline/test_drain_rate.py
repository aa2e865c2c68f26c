"""A rate is told from enough samples and time only, and how far it may be off."""

from __future__ import annotations

from random import Random

import pytest

from tpo_mp.pipeline.drain_rate import (
    FORGOTTEN_S,
    LEAST_S,
    LEAST_TURNS,
    MOST_TURNS,
    DrainRate,
    enough,
)


def served(rate: DrainRate, turns: int, every_s: float, now: float, places: int = 1) -> float:
    """So many turns, one after the other; the instant after them."""
    rate.begin(now)
    for _ in range(turns):
        now += every_s
        rate.turn(now, places)
    return now


def test_few_samples_or_little_time_tell_nothing() -> None:
    """One fewer than enough, however long it took; any number in a moment."""
    slow, fast = DrainRate(), DrainRate()
    now = served(slow, LEAST_TURNS - 1, 5.0, 0.0)
    assert (slow.likely(now, 1), slow.plausible(now, 1)) == (0, 0)
    now = served(slow, 1, 5.0, now)
    assert slow.likely(now, 1) == pytest.approx(0.2)
    now = served(fast, 1000, LEAST_S / 2000, 0.0)
    assert (fast.likely(now, 1), fast.plausible(now, 1)) == (0, 0)


def test_many_places_need_as_many_samples() -> None:
    """They come back together; but never more than a bound."""
    rate = DrainRate()
    now = served(rate, 100, 0.1, 0.0, places=64)
    assert rate.likely(now, 64) == 0
    now = served(rate, 28, 0.1, now, places=64)
    assert rate.likely(now, 64) == pytest.approx(10)
    assert enough(1_000_000) == MOST_TURNS


def test_time_without_a_queue_does_not_count() -> None:
    """Nor is it forgotten at once; after a long while it is."""
    rate = DrainRate()
    now = served(rate, 20, 0.1, 0.0)
    rate.end(now)
    now = served(rate, 20, 0.1, now + FORGOTTEN_S - 1)
    assert rate.likely(now, 1) == pytest.approx(10)
    rate.end(now)
    rate.begin(now + FORGOTTEN_S + 1)
    assert rate.likely(now + FORGOTTEN_S + 2, 1) == 0


def test_a_new_speed_takes_over_and_a_stall_shows() -> None:
    """Old samples go as new ones come; a queue that is not served at all becomes slower."""
    rate = DrainRate()
    now = served(rate, 500, 0.01, 0.0)
    assert rate.likely(now, 1) == pytest.approx(100, rel=0.1)
    now = served(rate, 64, 1.0, now)
    assert rate.likely(now, 1) == pytest.approx(1, rel=0.1)
    assert rate.likely(now + 100, 1) < 0.5


def test_the_plausible_rate_is_seldom_beyond_the_truth() -> None:
    """Replies at random instants: who refuses by it is right nearly always."""
    seed = 7
    random, below = Random(seed), 0
    for _ in range(400):
        rate, now = DrainRate(), 0.0
        rate.begin(now)
        for _ in range(LEAST_TURNS + 4):
            now += random.expovariate(5.0)
            rate.turn(now, 1)
        if now >= LEAST_S:
            assert rate.plausible(now, 1) >= rate.likely(now, 1) > 0
            below += rate.plausible(now, 1) < 5.0
    assert below < 400 * 0.05, f"seed {seed}: {below}"
