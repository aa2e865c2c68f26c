"""A rate is told from enough samples and time only, and how far it may be off."""

from __future__ import annotations

from random import Random

import pytest

from tpo_mp.pipeline.drain_rate import (
    FADES,
    FORGOTTEN_S,
    LEAST_S,
    LEAST_TURNS,
    MANY_TURNS,
    MOST_TURNS,
    DrainRate,
    enough,
)


def served(rate: DrainRate, turns: int, every_s: float, now: float, places: int = 1) -> float:
    """So many turns, one after the other; the instant after them."""
    rate.begin(now)
    for _ in range(turns):
        rate.turn(now + every_s, places, now, rate.total)
        now += every_s
    return now


def test_few_samples_or_little_time_tell_nothing() -> None:
    """One fewer than enough, however long it took; any number in a moment."""
    slow, fast = DrainRate(), DrainRate()
    now = served(slow, LEAST_TURNS - 1, 5.0, 0.0)
    assert (slow.likely(now, 1), slow.wait_s(1, now, 1), slow.longest_s(1, now, 1)) == (0, 0, 0)
    now = served(slow, 1, 5.0, now)
    assert slow.likely(now, 1) == pytest.approx(0.2)
    now = served(fast, 1000, LEAST_S / 2000, 0.0)
    assert (fast.likely(now, 1), fast.longest_s(1, now, 1)) == (0, 0)


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


def test_few_samples_speak_for_the_calls() -> None:
    """Chance made the first places slow or fast: hardly anybody is refused who had the time."""
    seed = 7
    random, wrong = Random(seed), 0
    for _ in range(400):
        rate, now = DrainRate(), 0.0
        rate.begin(now)
        for _ in range(LEAST_TURNS + 4):
            now += random.expovariate(5.0)
            rate.turn(now, 1, now, rate.total)
        if now >= LEAST_S:
            wrong += rate.longest_s(100, now, 1) > 100 / 5.0
    assert wrong < 400 * 0.05, f"seed {seed}: {wrong}"
    now = served(rate, 2 * MANY_TURNS, 0.2, now)
    assert rate.longest_s(100, now, 1) == pytest.approx(100 / 5.0, rel=0.2)


def test_regular_places_need_no_margin() -> None:
    """One after the other, at the same distance: who comes to the last is let in."""
    rate = DrainRate()
    now = served(rate, 2 * MANY_TURNS, 0.01, 0.0)
    assert rate.longest_s(20, now, 1) == pytest.approx(rate.wait_s(20, now, 1), rel=0.01)


def bunches(rate: DrainRate, times: int, places: int, every_s: float, now: float) -> float:
    """All places come back at once, so often, to calls that came just after the last time."""
    rate.begin(now)
    for _ in range(times):
        since, total = now, rate.total
        now += every_s
        for _ in range(places):
            rate.turn(now, places, since, total)
    return now


def test_places_that_come_in_bunches_need_a_margin() -> None:
    """The first after a bunch waits as long as the last: that long before the limit is the end."""
    rate = DrainRate()
    now = bunches(rate, 60, 16, 0.05, 0.0)
    assert rate.wait_s(17, now, 16) == pytest.approx(17 / 320, rel=0.05)
    assert rate.longest_s(17, now, 16) == pytest.approx(0.1, rel=0.05)
    assert rate.longest_s(1000, now, 16) < 1.1 * rate.wait_s(1000, now, 16)


def test_a_stall_costs_no_more_than_a_round_and_is_forgotten() -> None:
    """A pause of the whole machine is no reason to refuse all who come after it."""
    rate = DrainRate()
    now = served(rate, 2 * MANY_TURNS, 0.01, 0.0, places=4)
    rate.turn(now + 1.0, 4, now, rate.total)
    now += 1.0
    assert rate.longest_s(4, now, 4) <= 2.01 * rate.wait_s(4, now, 4)
    now = served(rate, 4 * FADES, 0.01, now, places=4)
    assert rate.longest_s(4, now, 4) == pytest.approx(rate.wait_s(4, now, 4), rel=0.5)


def test_a_call_that_got_no_place_tells_of_lateness_too() -> None:
    """Those let in at the edge expire, and get no turn that could tell."""
    rate = DrainRate()
    now = served(rate, 2 * MANY_TURNS, 0.01, 0.0, places=4)
    before_s = rate.longest_s(4, now, 4)
    rate.lags(now, 4, now - 0.05, rate.total)
    assert rate.longest_s(4, now, 4) > before_s + 0.02
