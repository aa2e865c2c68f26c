"""Restart intensity: when a slot backs off, and for how long."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.supervisor.intensity import SPACING_S, Intensity, RestartLimits

LIMITS = RestartLimits(deaths=5, window_s=10.0, backoff_min_s=1.0, backoff_max_s=30.0)


def crash(intensity: Intensity, now: float, times: int, every_s: float = 0.1) -> float:
    """Start and die ``times`` times; return the time afterwards."""
    for _ in range(times):
        intensity.started(now)
        now += every_s
        intensity.died(now, every_s)
    return now


def test_five_deaths_in_the_window_are_free() -> None:
    """A slot killed five times in ten seconds is restarted at once every time."""
    intensity = Intensity(LIMITS)
    now = crash(intensity, 0.0, 5)
    assert intensity.level == 0
    assert intensity.may_start(now)


def test_the_sixth_death_backs_off_one_second() -> None:
    """More than five deaths within the window start the first pause."""
    intensity = Intensity(LIMITS)
    now = crash(intensity, 0.0, 6)
    assert not intensity.may_start(now + 0.99)
    assert intensity.may_start(now + 1.0)


def test_pauses_double_up_to_the_longest() -> None:
    """1, 2, 4, 8, 16, 30, 30 seconds for a slot that dies at once every time."""
    intensity = Intensity(LIMITS)
    now = crash(intensity, 0.0, 6)
    pauses = []
    for _ in range(7):
        pauses.append(round(intensity.pause_s(now), 3))
        now = crash(intensity, now + pauses[-1], 1)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_a_long_life_forgives() -> None:
    """A slot that lived a window long starts from zero again."""
    intensity = Intensity(LIMITS)
    now = crash(intensity, 0.0, 7) + 2.0
    intensity.started(now)
    intensity.died(now + 10.0, 10.0)
    assert intensity.level == 0
    assert intensity.may_start(now + 10.0)


def test_five_deaths_far_apart_are_no_crash_loop() -> None:
    """Deaths older than the window do not count."""
    intensity = Intensity(LIMITS)
    crash(intensity, 0.0, 50, every_s=2.5)
    assert intensity.level == 0


def test_a_slot_that_dies_in_every_pause_is_looping() -> None:
    """After its third pause in vain the slot counts as lost."""
    intensity = Intensity(LIMITS)
    now = crash(intensity, 0.0, 6)
    for _ in range(3):
        assert not intensity.looping
        now = crash(intensity, now + intensity.pause_s(now), 1)
    assert intensity.looping


def test_a_refused_boot_backs_off_at_once() -> None:
    """What refuses once will refuse again: no five tries, and ever longer pauses."""
    intensity = Intensity(LIMITS)
    pauses = []
    now = 0.0
    for _ in range(3):
        intensity.died(now, 0.5, refused=True)
        pauses.append(intensity.pause_s(now))
        now += pauses[-1]
    assert pauses == [1.0, 2.0, 4.0]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_starts_are_never_closer_than_the_spacing(events: list[tuple[bool, float]]) -> None:
    """Whatever dies when, two starts of one slot keep their distance."""
    intensity = Intensity(LIMITS)
    now, starts = 0.0, []
    for wants_start, step in events:
        now += step / 10
        if wants_start and intensity.may_start(now):
            intensity.started(now)
            starts.append(now)
        elif not wants_start:
            intensity.died(now, step)
    assert all(b - a >= SPACING_S - 1e-9 for a, b in pairwise(starts))
