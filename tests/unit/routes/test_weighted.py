"""Smooth weighted round-robin: order, shares, retries, bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.routes.weighted import FEATURE, WeightedRoute
from tpo_mp.types import Call


@dataclass
class Target:
    """A backend as the route sees it."""

    name: str
    weight: int
    shut: bool = False

    def blocked(self, call: Call) -> bool:
        """Whether a breaker keeps it closed off."""
        return self.shut


def route() -> WeightedRoute:
    """Build the route as the registry does."""
    made = FEATURE.build(FEATURE.Config(), FakeWorld().env)
    assert isinstance(made, WeightedRoute)
    return made


def picks(made: WeightedRoute, targets: list[Target], times: int) -> str:
    """Join the names of the next picks."""
    return "".join(made.pick(make_call(b""), targets).name for _ in range(times))


def test_heavy_target_is_spread_not_bunched() -> None:
    """Weights 5, 1, 1 interleave as nginx documents it."""
    assert picks(route(), [Target("a", 5), Target("b", 1), Target("c", 1)], 7) == "aabacaa"


def test_equal_weights_take_turns() -> None:
    """Without a preference every target is next in order."""
    assert picks(route(), [Target("a", 1), Target("b", 1), Target("c", 1)], 6) == "abcabc"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_shares_are_exact_over_whole_rounds(weights: list[int], rounds: int) -> None:
    """After each sum of weights, every target was picked exactly its weight."""
    targets = [Target(chr(97 + i), weight) for i, weight in enumerate(weights)]
    seen = Counter(picks(route(), targets, rounds * sum(weights)))
    assert seen == {target.name: rounds * target.weight for target in targets}


def test_tried_targets_are_skipped_while_another_is_left() -> None:
    """A retry goes elsewhere; when all were tried, it goes somewhere."""
    made, targets = route(), [Target("a", 9), Target("b", 1)]
    assert made.pick(make_call(b"", tried={"a"}), targets).name == "b"
    assert made.pick(make_call(b"", tried={"a", "b"}), targets).name in "ab"


def test_blocked_targets_are_skipped_while_another_is_left() -> None:
    """Their running values stand still, so nothing is made up for afterwards; all blocked: any."""
    made, targets = route(), [Target("a", 5), Target("b", 1), Target("c", 1)]
    targets[0].shut = True
    assert picks(made, targets, 6) == "bcbcbc"
    targets[0].shut = False
    assert picks(made, targets, 7) == "aabacaa"
    for target in targets:
        target.shut = True
    assert set(picks(made, targets, 7)) == set("abc")


def test_model_sets_do_not_disturb_each_other() -> None:
    """Two models with different targets keep separate rounds."""
    made = route()
    left, right = [Target("a", 1), Target("b", 1)], [Target("a", 1), Target("c", 1)]
    assert picks(made, left, 1) + picks(made, right, 1) + picks(made, left, 1) == "aab"


def test_memory_is_bounded() -> None:
    """Thousands of target sets are forgotten, not collected."""
    made = route()
    for i in range(3000):
        picks(made, [Target(f"t{i}", 1)], 1)
    assert len(made._current) <= 1024
