"""A doorbell wakes, coalesces and never blocks, as an eventfd and as a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import connection

import pytest

from tpo_mp.shm import failpoints
from tpo_mp.shm.doorbell import Doorbell


@pytest.fixture(params=["0", "1"], ids=["eventfd", "pipe"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorbell]:
    """Both kinds."""
    monkeypatch.setenv("TPO_PORTABLE", request.param)
    made = Doorbell.create()
    yield made
    made.close()


def rung(bell: Doorbell) -> bool:
    """Say whether a loop would wake."""
    return bool(connection.wait([bell.fileno()], 0))


def test_ring_wakes_until_cleared(bell: Doorbell) -> None:
    """Silent, rung, silent again."""
    assert not rung(bell)
    bell.ring()
    assert rung(bell)
    bell.clear()
    assert not rung(bell)


def test_many_rings_need_one_clear(bell: Doorbell) -> None:
    """Rings coalesce."""
    for _ in range(1000):
        bell.ring()
    bell.clear()
    assert not rung(bell)


def test_clearing_a_silent_bell_does_nothing(bell: Doorbell) -> None:
    """It neither blocks nor raises."""
    bell.clear()
    assert not rung(bell)


def test_full_bell_neither_blocks_nor_raises(bell: Doorbell) -> None:
    """A pipe of 64 KiB and more is full long before this ends; it stays rung."""
    for _ in range(20_000):
        bell.ring()
    assert rung(bell)


def test_attached_bell_is_the_same_bell(bell: Doorbell) -> None:
    """The two descriptors are all another process needs."""
    other = Doorbell.attach(*bell.fds)
    other.ring()
    assert rung(bell)
    assert other.fileno() == bell.fds[0]


def test_dropped_ring_is_lost(bell: Doorbell) -> None:
    """The failpoint that loses a ring, for the tests of the recheck."""
    failpoints.configure({"TPO_TEST": "1", "TPO_FAILPOINTS": "ring.before_doorbell=drop:1:1"})
    try:
        bell.ring()
        bell.clear()
        bell.ring()
        assert not rung(bell)
    finally:
        failpoints.configure({})
    bell.ring()
    assert rung(bell)
