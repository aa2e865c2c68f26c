"""Which requests are struck by number, and between which moments."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tpo_mp.simulator.fault_schedule import Sequence, Window


@pytest.mark.parametrize(
    ("sequence", "struck"),
    [
        ({"every": 5}, [5, 10, 15, 20]),
        ({"every": 5, "offset": 2}, [2, 7, 12, 17]),
        ({"first": 3}, [1, 2, 3]),
        ({"after": 18}, [19, 20]),
        ({"span": [4, 6]}, [4, 5, 6]),
        ({"numbers": [1, 9]}, [1, 9]),
        ({"fail": 2, "succeed": 5}, [1, 2, 8, 9, 15, 16]),
        ({"every": 5, "after": 7}, [10, 15, 20]),
        ({"first": 6, "after": 4}, [5, 6]),
        ({"fail": 1, "succeed": 1, "first": 4}, [1, 3]),
        ({"fail": 1}, list(range(1, 21))),
    ],
)
def test_numbers_that_are_struck(sequence: dict[str, Any], struck: list[int]) -> None:
    """Of the first twenty."""
    made = msgspec.convert(sequence, Sequence)
    assert [number for number in range(1, 21) if made.strikes(number)] == struck


@pytest.mark.parametrize(
    "sequence", [{"span": [5, 4]}, {"span": [0, 4]}, {"succeed": 3}, {"offset": 1}, {"every": -1}]
)
def test_sequences_that_mean_nothing_are_refused(sequence: dict[str, Any]) -> None:
    """Rather than striking never, or always."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(sequence, Sequence)


def opened(window: dict[str, Any], *moments: float, wall_s: float = 0.0) -> list[bool]:
    """Whether a window is open at each of these moments."""
    made = msgspec.convert(window, Window)
    return [made.open(at, wall_s) for at in moments]


def test_window_begins_and_ends() -> None:
    """The beginning belongs to it, the end does not."""
    assert opened({"start_s": 30, "lasts_s": 60}, 29.9, 30, 89.9, 90) == [False, True, True, False]
    assert opened({"start_s": 30}, 29, 1e6) == [False, True]


def test_window_comes_again() -> None:
    """Every so often, from its start on."""
    window = {"start_s": 10, "lasts_s": 5, "every_s": 20}
    assert opened(window, 9, 10, 14, 15, 29, 30, 34, 35) == [
        False, True, True, False, False, True, True, False,
    ]  # fmt: skip


def test_window_keeps_office_hours() -> None:
    """By the clock on the wall, over midnight too; a day has 86 400 s."""
    nine = 9 * 3600
    day = {"since": "09:00", "until": "17:30"}
    assert opened(day, 0, wall_s=86_400 * 20_000 + nine) == [True]
    assert opened(day, 0, wall_s=nine - 1) == [False]
    assert opened(day, 0, wall_s=17.5 * 3600) == [False]
    night = {"since": "22:00", "until": "06:00"}
    assert [opened(night, 0, wall_s=hour * 3600) for hour in (23, 5, 12)] == [
        [True], [True], [False],
    ]  # fmt: skip


def test_start_is_drawn_from_its_spread() -> None:
    """By the rule's own number."""
    window = Window(start_s=10, spread_s=100)
    assert not window.open(59, 0, 0.5)
    assert window.open(60, 0, 0.5)


@pytest.mark.parametrize(
    "window", [{"since": "9:00"}, {"until": "24:00"}, {"every_s": 5}, {"every_s": 5, "lasts_s": 5}]
)
def test_windows_that_mean_nothing_are_refused(window: dict[str, Any]) -> None:
    """A time that is none, a repetition without an end."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(window, Window)
