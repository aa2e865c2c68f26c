"""Turns, whatever the weights."""

from __future__ import annotations

from tests.support.routed import RoutedHost, RoutedTarget


def test_targets_take_turns_whatever_their_weight() -> None:
    """In the configured order."""
    host, targets = RoutedHost("round_robin"), [RoutedTarget("a", 9), RoutedTarget("b")]
    assert "".join(host.pick(0, targets) for _ in range(6)) == "ababab"


def test_what_was_left_out_has_nothing_to_make_up_for() -> None:
    """It takes its turn again, and no more."""
    host = RoutedHost("round_robin")
    targets = [RoutedTarget(name) for name in "abc"]
    targets[1].shut = True
    assert "".join(host.pick(0, targets) for _ in range(5)) == "acaca"
    targets[1].shut = False
    assert "".join(host.pick(0, targets) for _ in range(6)) == "bcabca"


def test_memory_is_bounded() -> None:
    """Thousands of sets of targets are forgotten."""
    host = RoutedHost("round_robin")
    for n in range(3000):
        host.pick(0, [RoutedTarget(f"t{n}")])
    assert len(host.routes[0]._last) <= 1024
