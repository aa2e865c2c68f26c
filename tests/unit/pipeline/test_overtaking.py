"""How many pass a call is learnt for each priority apart, and forgotten."""

from __future__ import annotations

import pytest

from tpo_mp.pipeline.overtaking import FADES, Overtaking
from tpo_mp.types import Priority


def test_it_is_what_waits_came_to_of_the_same_priority() -> None:
    """Low calls met three times as many as stood before them; of the others nobody knows."""
    seen = Overtaking()
    assert seen.passed(Priority.LOW) == 1
    for _ in range(10):
        seen.over(Priority.LOW, 10.0, 30)
    assert seen.passed(Priority.LOW) == pytest.approx(3)
    assert seen.passed(Priority.NORMAL) == 1


def test_who_has_its_turn_early_makes_nobody_hope() -> None:
    """Those before it left: that may not happen again."""
    seen = Overtaking()
    seen.over(Priority.NORMAL, 10.0, 2)
    assert seen.passed(Priority.NORMAL) == 1


def test_a_rush_that_is_over_is_forgotten() -> None:
    """After as many calls as count."""
    seen = Overtaking()
    for _ in range(4 * FADES):
        seen.over(Priority.NORMAL, 10.0, 50)
    for _ in range(8 * FADES):
        seen.over(Priority.NORMAL, 10.0, 10)
    assert seen.passed(Priority.NORMAL) == pytest.approx(1, abs=0.01)
