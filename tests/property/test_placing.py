"""Placement is stable, balanced, and blind to how names are joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpo_mp.shm.plane import BUCKETS, Plane
from tpo_mp.worker.placing import Placing

TEXT = st.text(st.characters(codec=None), max_size=40)


@pytest.fixture(scope="module")
def planes() -> Iterator[list[Plane]]:
    """The same map under two install keys, and the first key again."""
    made = [Plane.create(4, 7, key) for key in (bytes(16), bytes(range(16)), bytes(16))]
    for plane in made:
        plane.publish_map([i % 4 for i in range(BUCKETS)])
    yield made
    for plane in made:
        plane.close()


@given(TEXT, TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_same_key_same_seat(planes: list[Plane], tenant: str, key: str) -> None:
    """Under the same install key, whoever asks."""
    first, _, again = (Placing(plane) for plane in planes)
    assert first.seat_of(tenant, key) == again.seat_of(tenant, key) < 4


def test_keys_spread_evenly_and_differently_per_host(planes: list[Plane]) -> None:
    """Sequential names are no pattern; another host's install key gives another spread."""
    keys = [f"session-{i}" for i in range(8000)]
    spreads = [[Placing(plane).seat_of("t", key) for key in keys] for plane in planes[:2]]
    for spread in spreads:
        assert all(1800 < n < 2200 for n in Counter(spread).values())
    same = sum(a == b for a, b in zip(*spreads, strict=True))
    assert 1800 < same < 2200
