"""Scores of resources: known terms only, lowest wins."""

from __future__ import annotations

import pytest

from tests.support.routed import RoutedHost, RoutedTarget
from tpo_mp.pipeline.scoring import target_of
from tpo_mp.ports import BackendConfig
from tpo_mp.routes.resource_aware import Config

TARGETS = [RoutedTarget("a"), RoutedTarget("b")]


def made(**most: int) -> RoutedHost:
    """A host whose backends bear so many calls at a time."""
    host = RoutedHost("resource_aware")
    entries = [BackendConfig(name=t.name, kind="echo", max_concurrent=most.get(t.name, 0))
               for t in TARGETS]  # fmt: skip
    for route in host.routes:
        route.meet(entries)
    return host


def answered(host: RoutedHost, name: str, took_s: float) -> None:
    """The backend answered ten tries."""
    board = host.routes[0]._board
    score = host.world.scores.seat(1).of(target_of(board.known, name, "m"))
    assert score is not None
    for _ in range(10):
        score.good(took_s, host.world.now)


def test_calls_count_for_what_a_backend_bears() -> None:
    """Eight of a hundred are less than two of ten."""
    host = made(a=10, b=100)
    host.load(1, "a", 2)
    host.load(0, "b", 8)
    assert {host.pick(worker, TARGETS) for worker in (0, 1)} == {"b"}


def test_a_slow_backend_is_left_for_a_quick_one() -> None:
    """By the times of all workers; a little more load on the quick one does not change that."""
    host = made()
    answered(host, "a", 0.9)
    answered(host, "b", 0.05)
    host.load(1, "b", 10)
    assert host.pick(0, TARGETS) == "b"


def test_a_backend_of_which_less_is_known_is_judged_by_the_rest() -> None:
    """Not by a zero: an unknown time neither makes it the best nor the worst."""
    host = made()
    answered(host, "a", 0.2)
    host.load(0, "b", 60)
    host.load(0, "a", 10)
    assert host.pick(0, TARGETS) == "a"
    host.load(0, "a", 90)
    assert host.pick(0, TARGETS) == "b"


def test_equal_scores_take_turns() -> None:
    """An idle host uses all."""
    host = made()
    assert {host.pick(0, TARGETS) for _ in range(4)} == {"a", "b"}


def test_something_must_be_gone_by() -> None:
    """Calls under way are all that is always known."""
    with pytest.raises(ValueError, match="connections = 0"):
        Config(connections=0)
