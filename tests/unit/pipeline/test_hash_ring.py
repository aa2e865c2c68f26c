"""The ring on which keys find their backend."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.fake_env import make_call
from tests.support.routed import RoutedTarget
from tpo_mp.pipeline import hash_ring
from tpo_mp.pipeline.hash_ring import HashRing, HashRings, session_key


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


def test_keys_keep_their_places_whatever_targets_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ring is enough for all of them, however many sets of them there are."""
    targets = [RoutedTarget(f"b{n}", 1 + n) for n in range(12)]
    rings, whole = HashRings(), HashRing(targets)
    rings.meet(targets)
    monkeypatch.setattr(hash_ring, "HashRing", None)  # no other one is made
    for n in range(1000):
        left = [target for bit, target in enumerate(targets) if n + 1 >> bit & 1]
        names = {target.name for target in left}
        key = b"%d" % n
        found = [target.name for target in rings.order(key, left)]
        assert found == [name for name in whole.order(key) if name in names]


def test_a_long_request_is_told_by_its_beginning() -> None:
    """To read all of it would hold the loop."""
    start = bytes(1 << 16)
    keys = {session_key(make_call(start + end)) for end in (b"", b"a", b"b", bytes(1 << 20))}
    assert len(keys) == 3
