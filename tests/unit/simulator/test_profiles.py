"""Profiles: the schedule of a call, drawn from its own key."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.simulator.degradation import Degradation
from tpo_mp.simulator.distributions import Empirical, Fixed, LogNormal, Uniform
from tpo_mp.simulator.pacing import Step
from tpo_mp.simulator.profiles import (
    ColdStart,
    Profile,
    ProfileTiming,
    Stalls,
    length_of,
    offer,
    problems,
)
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import EVERYTHING, Asked

MINE = Profile(
    first_token_ms=LogNormal(p50=100, sigma=0.4),
    token_ms=LogNormal(mean=10, sd=5),
    speed_cv=0.2,
    jitter_cv=0.1,
)


def timing(world: FakeWorld, profile: Profile, name: str = "mine") -> ProfileTiming:
    """As one worker has it."""
    return ProfileTiming(name, profile, timer_of(world.env), world.env.ledger)


def schedule(profile: Profile, key: bytes = b"k", tokens: int = 50) -> list[Step]:
    """The steps of one call that arrives at nought."""
    made = timing(FakeWorld(), profile)
    return list(made.steps(made.drawing(key), key, 0.0, tokens, 1.0))


def test_same_key_has_the_same_varied_schedule() -> None:
    """In any process; another key has another, and no two gaps of one are alike."""
    steps = schedule(MINE)
    assert schedule(MINE) == steps != schedule(MINE, b"l")
    assert len(steps) == sum(tokens for _, tokens in steps) == 50
    gaps = [b - a for (a, _), (b, _) in pairwise(steps)]
    assert len(set(gaps)) == len(gaps)
    assert min(gaps) >= 0


def test_calls_differ_in_speed_and_are_right_on_average() -> None:
    """Each call has its own mean gap; over all of them it is the profile's."""
    means = []
    for number in range(300):
        steps = schedule(MINE, number.to_bytes(2, "big"), 100)
        means.append((steps[-1][0] - steps[0][0]) / 99 * 1e3)
    mean = sum(means) / len(means)
    spread = (sum((m - mean) ** 2 for m in means) / len(means)) ** 0.5
    assert mean == pytest.approx(10, rel=0.05)
    assert spread / mean == pytest.approx(0.2, rel=0.25)


def test_chunks_leave_the_first_token_and_the_end_where_they_were() -> None:
    """The first goes alone; each further chunk goes with its last token."""
    chunked = Profile(first_token_ms=Fixed(value=100), token_ms=Fixed(value=10),
                      tokens_per_chunk=(2, 5))  # fmt: skip
    steps = schedule(chunked, tokens=200)
    assert steps[0] == (pytest.approx(0.1), 1)
    assert steps[-1][0] == pytest.approx(0.1 + 199 * 0.01)
    assert sum(tokens for _, tokens in steps) == 200
    assert {tokens for _, tokens in steps[1:-1]} == {2, 3, 4, 5}
    gone = 0
    for at, tokens in steps:
        gone += tokens
        assert at == pytest.approx(0.1 + (gone - 1) * 0.01)
    sizes = timing(FakeWorld(), chunked).chunks(b"k")
    assert sizes is not None
    assert [next(sizes) for _ in steps[:-1]] == [tokens for _, tokens in steps[:-1]]


def test_stall_lengthens_one_gap_of_some_answers() -> None:
    """By what it says; the share of answers is the one configured."""
    stalling = Profile(first_token_ms=Fixed(value=1), token_ms=Fixed(value=1),
                       stalls=Stalls(chance=0.25, ms=Fixed(value=500)))  # fmt: skip
    stalled, places = 0, set()
    for number in range(400):
        steps = schedule(stalling, number.to_bytes(2, "big"), 10)
        gaps = [b - a for (a, _), (b, _) in pairwise(steps)]
        long = [at for at, gap in enumerate(gaps) if gap > 0.4]
        assert len(long) <= 1
        stalled += len(long)
        places.update(long)
    assert 65 < stalled < 140
    assert places == set(range(9))


def test_cold_starts_are_a_share_of_calls_or_follow_idleness() -> None:
    """Idle is the host, whichever worker served last."""
    cold = Profile(first_token_ms=Fixed(value=1),
                   cold_start=ColdStart(first_token_ms=Fixed(value=9000), chance=0.2))  # fmt: skip
    slow = sum(schedule(cold, n.to_bytes(2, "big"), 1)[0][0] > 5 for n in range(400))
    assert 50 < slow < 110
    world, idle = FakeWorld(), Profile(
        first_token_ms=Fixed(value=100),
        cold_start=ColdStart(first_token_ms=Fixed(value=9000), after_idle_s=60),
    )  # fmt: skip
    workers = [timing(world, idle), timing(world, idle)]
    waits = []
    for worker, pause_s in ((0, 0), (1, 10), (0, 10), (1, 70), (0, 1)):
        world.now += pause_s
        pace = workers[worker].pace(Asked(make_call(b"{}"), b"k", world.now, 1, 1))
        waits.append(next(pace._steps)[0] - world.now)
    assert [round(wait, 3) for wait in waits] == [9, 0.1, 0.1, 9, 0.1]
    world.now = 5  # a host that has just booted
    fresh = ProfileTiming("another", idle, timer_of(world.env), world.env.ledger)
    pace = fresh.pace(Asked(make_call(b"{}"), b"k", world.now, 1, 1))
    assert next(pace._steps)[0] - world.now == 9


def test_load_of_all_workers_slows_a_call_down() -> None:
    """Twice the base rate, twice as long under a slope that says so; and the factor on top."""
    world = FakeWorld()
    bend = Degradation(curve="piecewise", base_per_s=10, points=((0, 1), (10, 1), (20, 2)))
    bent = Profile(first_token_ms=Fixed(value=100), token_ms=Fixed(value=10), degradation=bend)
    workers = [timing(world, bent), timing(world, bent)]
    for number in range(400):
        world.now = 1000 + number * 0.05
        asked = Asked(make_call(b"{}"), b"k", world.now, 1, 3, factor=2.0)
        pace = workers[number % 2].pace(asked)
    waits = [at - world.now for at, _ in pace._steps]
    assert waits == pytest.approx([0.4, 0.44, 0.48], rel=0.03)


def test_answers_may_have_a_length_of_their_own() -> None:
    """In whole tokens, at least one; none said leaves it to the operator's bounds."""
    told = Profile(first_token_ms=Fixed(value=1), answer_tokens=Uniform(low=0, high=4))
    random = Random(1)
    assert {length_of(told, random) for _ in range(200)} == {1, 2, 3, 4}
    assert length_of(MINE, random) is None


def test_timings_are_made_once_and_pace_on_the_workers_timer() -> None:
    """An offer names what it can make; the pace lets everything go at its end."""
    world = FakeWorld()
    made = offer({"mine": MINE}, world.env.ledger, timer_of(world.env))["mine"]()
    released: list[int] = []
    pace = made.pace(Asked(make_call(b"{}"), b"k", world.now, 1, 20))
    pace.begin(released.append)
    while sum(released) < EVERYTHING:
        world.advance(0.01)
        assert world.now < 1010
    assert len(released) > 5


def test_recording_that_cannot_be_read_is_a_problem_with_its_place(tmp_path: Path) -> None:
    """Wherever in the profile it stands."""
    gone = Empirical(file=str(tmp_path / "gone"))
    stalls = Stalls(chance=0.1, ms=gone)
    mine = Profile(first_token_ms=gone, stalls=stalls)
    places = [where for where, _ in problems({"mine": mine, "other": MINE})]
    assert places == ["mine.first_token_ms.file", "mine.stalls.ms.file"]
