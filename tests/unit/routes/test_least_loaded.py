"""The least loaded backend, by what all workers have under way."""

from __future__ import annotations

from collections import Counter

from tests.support.routed import RoutedHost, RoutedTarget


def test_what_another_worker_has_under_way_counts() -> None:
    """A worker that has nothing itself does not add to the backend that the other keeps busy."""
    host, targets = RoutedHost("least_loaded"), [RoutedTarget("a"), RoutedTarget("b")]
    host.load(1, "a", 3)
    for _ in range(3):
        assert host.pick(0, targets) == "b"
        host.load(0, "b")
    host.load(0, "b")
    assert host.pick(0, targets) == "a"


def test_what_a_dead_worker_had_under_way_does_not() -> None:
    """It is gone with it."""
    host, targets = RoutedHost("least_loaded"), [RoutedTarget("a"), RoutedTarget("b")]
    host.load(1, "a", 3)
    host.load(0, "b")
    host.shares.die(1)
    assert host.pick(0, targets) == "a"


def test_load_is_for_weight_and_equals_take_turns() -> None:
    """Three times the weight, three times the load."""
    host, targets = RoutedHost("least_loaded"), [RoutedTarget("a", 3), RoutedTarget("b", 1)]
    for n in range(40):
        host.load(n % 2, host.pick(n % 2, targets))
    assert host.shares.of("load:a").total() == 30
    even = [RoutedTarget("x"), RoutedTarget("y")]
    assert Counter(host.pick(0, even) for _ in range(10)) == {"x": 5, "y": 5}


def test_blocked_and_tried_targets_are_left_out_while_another_is_left() -> None:
    """However idle they are."""
    host = RoutedHost("least_loaded")
    targets = [RoutedTarget("a", shut=True), RoutedTarget("b"), RoutedTarget("c")]
    host.load(0, "c", 5)
    assert host.pick(0, targets, tried={"b"}) == "c"
