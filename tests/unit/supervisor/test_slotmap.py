"""The slot map: stable, balanced, and only a lost slot's sessions move."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.supervisor.slotmap import BUCKETS, NO_SEAT, SlotView, acceptors, buckets


def views(workers: int, *, down: set[int] = frozenset()) -> list[SlotView]:  # type: ignore[assignment]
    """Slots whose seats are ten above their index."""
    return [
        SlotView(NO_SEAT if slot in down else slot + 10, slot not in down, slot in down)
        for slot in range(workers)
    ]


@given(st.integers(1, 64))
def test_healthy_slots_share_the_buckets_evenly(workers: int) -> None:
    """Every slot gets its share, give or take one bucket."""
    counts = Counter(buckets(views(workers)))
    assert len(counts) == workers
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(2, 64), st.data())
def test_one_lost_slot_moves_its_own_buckets_only(workers: int, data: st.DataObject) -> None:
    """Sessions of the others stay where they are; at most 1/N + 2 % move."""
    lost = data.draw(st.integers(0, workers - 1))
    before, after = buckets(views(workers)), buckets(views(workers, down={lost}))
    moved = [b for b in range(BUCKETS) if before[b] != after[b]]
    assert all(before[bucket] == lost + 10 for bucket in moved)
    assert len(moved) <= BUCKETS / workers + 0.02 * BUCKETS
    assert NO_SEAT not in after


def test_guests_are_spread_over_the_live_slots() -> None:
    """A lost slot's sessions do not all fall on one neighbour."""
    before, after = buckets(views(4)), buckets(views(4, down={2}))
    guests = Counter(after[b] for b in range(BUCKETS) if before[b] == 12)
    assert set(guests) == {10, 11, 13}
    assert min(guests.values()) > 0.2 * sum(guests.values())


def test_a_slot_that_is_briefly_down_keeps_its_buckets() -> None:
    """Within the first second nothing moves: the buckets have no seat."""
    slots = views(2)
    slots[1] = SlotView(NO_SEAT, serving=False, moved=False)
    assert set(buckets(slots)[1::2]) == {NO_SEAT}


def test_nobody_left_means_no_seat() -> None:
    """With every slot lost the map names nobody."""
    assert set(buckets(views(2, down={0, 1}))) == {NO_SEAT}


def test_everyone_accepts_for_itself() -> None:
    """In health the acceptor is the slot's own seat."""
    assert acceptors(views(3), [False] * 3) == [10, 11, 12]


def test_the_next_beating_slot_accepts_for_a_silent_one() -> None:
    """Silent or empty slots get the next neighbour round the circle."""
    assert acceptors(views(3), [False, True, True]) == [10, 10, 10]
    assert acceptors(views(3, down={0}), [False] * 3) == [11, 11, 12]


def test_a_silent_slot_without_neighbours_keeps_its_listener() -> None:
    """Nobody else could take it over."""
    assert acceptors(views(1), [True]) == [10]
    assert acceptors(views(1, down={0}), [True]) == [NO_SEAT]
