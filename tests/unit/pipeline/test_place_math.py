"""The limit settles near what a backend can do, follows it, and never leaves its bounds."""

from __future__ import annotations

from random import Random

import pytest

from tests.support.busy_backend import BusyBackend, settled
from tpo_mp.pipeline.place_math import (
    LEAST_SAMPLES,
    WINDOW_S,
    LimitBounds,
    LimitState,
    LimitWindow,
    begun,
    due,
    judged,
)

BOUNDS = LimitBounds()


@pytest.mark.parametrize(("servers", "service_s"), [(4, 0.02), (8, 0.1), (64, 0.2)])
def test_it_settles_where_the_backend_is_busy(servers: int, service_s: float) -> None:
    """Between what it answers at a time and three times that, and keeps it busy."""
    backend = BusyBackend(servers, service_s, BOUNDS, seed=3)
    backend.run(60)
    before = backend.served
    least, middle, _ = settled(backend.run(60))
    assert servers <= middle <= 3 * servers, (least, middle)
    assert backend.served - before >= 0.9 * 60 * servers / service_s


def test_it_follows_a_backend_that_becomes_slower_or_larger() -> None:
    """The best it was is forgotten, in a probe."""
    backend = BusyBackend(8, 0.05, BOUNDS, seed=4)
    backend.run(60)
    backend.service_s = 0.2
    _, middle, _ = settled(backend.run(150))
    assert 8 <= middle <= 24
    assert backend.state.whole_s > 0.15
    backend.servers = 40
    _, middle, _ = settled(backend.run(120))
    assert 40 <= middle <= 120


def test_overload_answers_keep_it_below() -> None:
    """A backend that refuses above twelve is seldom asked for more."""
    backend = BusyBackend(32, 0.05, BOUNDS, seed=5, refuses_above=12)
    backend.run(20)
    least, _, most = settled(backend.run(60))
    assert 8 <= least <= most <= 16


def test_who_is_not_held_back_gets_no_more() -> None:
    """Three callers do not raise sixteen."""
    backend = BusyBackend(8, 0.05, BOUNDS, seed=6, offered=3)
    assert set(backend.run(30)) == {16.0}


def test_bounds_hold_whatever_comes() -> None:
    """Random windows, any state that follows from them."""
    seed = 8
    random, bounds = Random(seed), LimitBounds(5, 3, 9, 1.5)
    state, now = begun(bounds, 0.0), 0.0
    for _ in range(3000):
        now += random.expovariate(1.0)
        wholes = float(random.randrange(40))
        window = LimitWindow(
            wholes=wholes, whole_sum_s=wholes * random.expovariate(1.0),
            lost=float(random.randrange(3) * random.randrange(9)), full=float(random.randrange(2)),
        )  # fmt: skip
        if due(state, window, now):
            state = judged(state, window, bounds, random.randrange(12), now)
        assert 3 <= state.limit <= 9, f"seed {seed}: {state}"


def test_few_samples_or_little_time_are_no_judgement() -> None:
    """Both are needed."""
    state = begun(BOUNDS, 100.0)
    few, enough = LimitWindow(wholes=LEAST_SAMPLES - 1), LimitWindow(wholes=LEAST_SAMPLES)
    assert not due(state, few, 100 + 10 * WINDOW_S)
    assert not due(state, enough, 100 + WINDOW_S / 2)
    assert due(state, enough, 100 + WINDOW_S)


def test_streams_and_whole_replies_are_compared_with_their_own() -> None:
    """More whole replies, which take longer, are no slower backend."""
    state = LimitState(limit=20, first_s=0.1, whole_s=5.0, probe_at=1e9)
    window = LimitWindow(firsts=1, first_sum_s=0.1, wholes=50, whole_sum_s=250.0, full=1)
    assert judged(state, window, BOUNDS, 20, 50.0).limit > 20
    slow = LimitWindow(firsts=50, first_sum_s=50 * 0.4, wholes=1, whole_sum_s=5.0, full=1)
    assert judged(state, slow, BOUNDS, 20, 50.0).limit < 20


WAITS = LimitBounds(waits=True)


def test_however_slow_it_is_there_is_no_limit_without_overload() -> None:
    """Four at a time before a hundred callers: who is slow but answers is not held back."""
    backend = BusyBackend(4, 0.5, WAITS, seed=9, offered=100)
    backend.run(30)
    assert backend.state.limit == 0
    assert backend.served > 0


def test_overload_brings_a_limit_and_calm_takes_it_away() -> None:
    """It is found, keeps nearly all refusals away, and is gone a minute after it was needed."""
    backend = BusyBackend(20, 0.05, WAITS, seed=10, offered=100, refuses_above=20)
    backend.run(20)
    before = backend.refused, backend.served
    least, _, most = settled(backend.run(60))
    refused, served = backend.refused - before[0], backend.served - before[1]
    assert 12 <= least <= most <= 26, (least, most)
    assert refused <= 0.12 * served
    assert served >= 0.75 * 60 * 20 / 0.05
    backend.offered = 5
    backend.run(90)
    assert backend.state.limit == 0


def test_fewer_calls_that_are_no_help_are_let_alone() -> None:
    """A third is refused whatever comes (a model without quota): calls wait a tenth of the time."""
    backend = BusyBackend(50, 0.05, WAITS, seed=11, offered=50)
    backend.refuses = 0.33
    limits = backend.run(300)
    held_back = sum(limit < 50 for limit in limits)
    assert 0 < held_back <= 0.15 * len(limits), (held_back, len(limits))
    assert min(limits) >= 50 / 5


def test_a_machine_that_stood_still_tells_nothing_of_help() -> None:
    """One window of few answers a second, with others of many around it: the limit goes on."""
    state, now = begun(WAITS, 0.0), 0.0
    for took_s in (0.5, 0.5, 3.5, 0.5, 3.5, 0.5):
        now += took_s
        seen = LimitWindow(wholes=50.0, whole_sum_s=5.0, lost=30.0, full=9.0)
        state = judged(state, seen, WAITS, 40, now)
    assert 0 < state.limit < 40
