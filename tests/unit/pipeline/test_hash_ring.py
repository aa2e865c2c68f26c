"""The ring on which keys find their backend."""

from __future__ import annotations

from collections import Counter

from tests.support.routed import RoutedTarget
from tpo_mp.pipeline.hash_ring import HashRing


def test_weights_are_shares_of_the_keys() -> None:
    """Three times the weight, about three times the keys."""
    ring = HashRing([RoutedTarget("a", 3), RoutedTarget("b", 1)])
    found = Counter(ring.order(b"%d" % n)[0] for n in range(4000))
    assert 0.65 < found["a"] / 4000 < 0.85


def test_an_order_names_everybody_once() -> None:
    """Also with weights far apart, which does not make the ring any longer than it may be."""
    targets = [RoutedTarget("a", 1000), RoutedTarget("b", 1), RoutedTarget("c", 500)]
    ring = HashRing(targets)
    assert len(ring._places) <= 15_100
    assert sorted(ring.order(b"key")) == ["a", "b", "c"]
