"""The workload that repeats itself, and what is told of it."""

from __future__ import annotations

from collections import Counter
from random import Random

from benchmarks.scenarios.savings import drawn, row


def test_questions_follow_the_law(rng: Random) -> None:
    """The most asked is asked twice as often as the second, and nothing is out of range."""
    asked = drawn(rng, 60_000, 500, 1.0)
    seen = Counter(asked)
    assert set(seen) <= set(range(500))
    assert 1.8 < seen[0] / seen[1] < 2.2
    assert 4 < seen[0] / seen[4] < 6
    assert drawn(Random(6), 50, 500, 1.0) == drawn(Random(6), 50, 500, 1.0)


def test_a_row_counts_at_the_upstream() -> None:
    """What the gateway tells must add up to it."""
    asked, told = [0, 0, 0, 1, 1, 2, 3, 0], Counter(miss=4, hit=3, coalesced=1)
    true = row(asked, told, {"total_hits": 3}, 4)
    assert (true["questions"], true["saved_pct"], true["possible_pct"]) == (4, 50.0, 50.0)
    assert (true["untrue"], true["failed"]) == (0, 0)
    assert row(asked, told, {"total_hits": 2}, 5)["untrue"] == 2
