"""Who stands out among several, and for how long."""

from __future__ import annotations

import pytest

from tpo_mp.pipeline.ejection import (
    Ejection,
    ejected,
    forgiven,
    has_room,
    pack_ejection,
    stands_out,
    unpack_ejection,
    worst_first,
)
from tpo_mp.stages.outlier import Config
from tpo_mp.types import TOOK_S, TryTally

OPTIONS = Config(min_tries=10)


def tries(good: int, bad: int = 0, took_s: float = 0.1) -> TryTally:
    """So many, all answered in the same time."""
    times = [0] * (len(TOOK_S) + 1)
    times[next(n for n, bound in enumerate(TOOK_S) if took_s <= bound)] = good
    return TryTally(good, bad, 0, 0, tuple(times))


@pytest.mark.parametrize(
    ("mine", "others", "why"),
    [
        (tries(60, 40), [tries(100), tries(100)], "failures"),
        (tries(75, 25), [tries(100), tries(100)], ""),  # below the share
        (tries(60, 40), [tries(60, 40), tries(60, 40)], ""),  # all are alike
        (tries(0, 100), [tries(0, 100), tries(100)], "failures"),
        (tries(40, 60), [tries(60, 40), tries(60, 40)], ""),  # worse, but not twice
        (tries(4, 5), [tries(100)], ""),  # too few to tell
        (tries(0, 100), [tries(9)], ""),  # nobody to be compared with
        (tries(0, 100), [], ""),
        (tries(100, 0, 4.0), [tries(100, 0, 0.25), tries(100, 0, 0.25)], "slow"),
        (tries(100, 0, 0.4), [tries(100, 0, 0.02)], ""),  # not slow by itself
        (tries(100, 0, 1.0), [tries(100, 0, 0.4)], ""),  # slower, but not so many times
        (tries(5, 4, 4.0), [tries(100, 0, 0.1)], ""),  # too few answers to tell
    ],
)
def test_it_stands_out_by_comparison(mine: TryTally, others: list[TryTally], why: str) -> None:
    """Or it does not."""
    assert stands_out(mine, others, OPTIONS) == why


def test_slowness_may_be_ignored() -> None:
    """A factor of 0 says so."""
    slow = [tries(100, 0, 4.0), tries(100)]
    assert stands_out(slow[0], slow[1:], OPTIONS) == "slow"
    assert stands_out(slow[0], slow[1:], Config(min_tries=10, slow_factor=0)) == ""


@pytest.mark.parametrize(
    ("groups", "out", "share", "room"),
    [
        ([["a", "b"]], set(), 0.1, True),  # one always may
        ([["a", "b"]], {"b"}, 1.0, False),  # one always stays
        ([["a", "b", "c", "d"]], {"b"}, 0.5, True),
        ([["a", "b", "c", "d"]], {"b", "c"}, 0.5, False),
        ([["a", "b", "c", "d"], ["a", "c"]], {"c"}, 0.5, False),  # each of its routes counts
        ([["a", "b", "c"], ["d", "c"]], {"c"}, 1.0, True),
    ],
)
def test_there_is_room_for_one_more(
    groups: list[list[str]], out: set[str], share: float, room: bool
) -> None:
    """In every group that it is in."""
    assert has_room("a", groups, out, Config(max_share=share)) is room


def test_it_is_left_out_longer_each_time_and_is_forgiven() -> None:
    """Up to a longest time; what was written is read again."""
    row, now, spans = Ejection(), 100.0, []
    for _ in range(12):
        row = ejected(row, "failures", OPTIONS, now, 0.0)
        spans.append(row.left_s(now))
        assert unpack_ejection(pack_ejection(row)) == row
        now = row.until
    assert spans == [30.0 * min(n, 10) for n in range(1, 13)]
    assert ejected(Ejection(), "slow", OPTIONS, now, 1.0).left_s(now) == pytest.approx(33.0)
    for left in range(11, -1, -1):
        row = forgiven(row, now)
        assert (row.times, row.left_s(now)) == (left, 0.0)


def test_the_worst_is_first() -> None:
    """By failures, then by time."""
    found = {"a": tries(9, 1), "b": tries(5, 5), "c": tries(10, 0, 4.0), "d": tries(10)}
    assert worst_first(found) == ["b", "a", "c", "d"]
