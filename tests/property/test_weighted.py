"""Smooth weighted round-robin: exact shares, no bunching, whatever the weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.routes.weighted import FEATURE
from tpo_mp.types import Call


@dataclass
class Heavy:
    """A backend as the route sees it."""

    name: str
    weight: int

    def blocked(self, _call: Call) -> bool:
        """None is known to fail."""
        return False


def nginx(weights: list[int], times: int) -> list[int]:
    """The published algorithm, written down once more and slowly."""
    current = [0] * len(weights)
    picked = []
    for _ in range(times):
        current = [c + w for c, w in zip(current, weights, strict=True)]
        best = max(range(len(weights)), key=lambda i: (current[i], -i))
        current[best] -= sum(weights)
        picked.append(best)
    return picked


def picks(weights: list[int], times: int) -> list[int]:
    """What our route picks."""
    route = FEATURE.build(FEATURE.Config(), FakeWorld().env)
    targets = [Heavy(str(i), weight) for i, weight in enumerate(weights)]
    return [int(route.pick(make_call(b""), targets).name) for _ in range(times)]


WEIGHTS = st.lists(st.integers(1, 30), min_size=1, max_size=7)


def test_oracle() -> None:
    """The example of its authors: 5, 1, 1 is a a b a c a a."""
    assert "".join("abc"[i] for i in picks([5, 1, 1], 7)) == "aabacaa"


@given(WEIGHTS, st.integers(1, 200))
def test_order_is_the_published_one(weights: list[int], times: int) -> None:
    """Pick by pick, ties to the first."""
    assert picks(weights, times) == nginx(weights, times)


@given(WEIGHTS, st.integers(0, 300))
def test_shares_hold_at_any_moment(weights: list[int], times: int) -> None:
    """Nobody is ever a whole round of the others ahead or behind its share."""
    seen = Counter(picks(weights, times))
    total = sum(weights)
    for i, weight in enumerate(weights):
        assert abs(seen[i] - times * weight / total) < len(weights)


@given(WEIGHTS, st.lists(st.sets(st.integers(0, 6)), max_size=40))
def test_tried_backends_are_skipped_while_another_is_left(
    weights: list[int], tried: list[set[int]]
) -> None:
    """Also in between ordinary picks."""
    route = FEATURE.build(FEATURE.Config(), FakeWorld().env)
    targets = [Heavy(str(i), weight) for i, weight in enumerate(weights)]
    for names in tried:
        out = {str(i) for i in names}
        picked = route.pick(make_call(b"", tried=out or None), targets).name
        if len(out & {t.name for t in targets}) < len(targets):
            assert picked not in out
