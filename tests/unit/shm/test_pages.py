"""The page allocator: no run is given twice, and everything comes back."""

from __future__ import annotations

import random

import pytest

from tpo_mp.shm.pages import KEPT, Pages


def test_a_fresh_arena_gives_all_its_pages() -> None:
    """Single pages until there is none; each exactly once."""
    pages = Pages(64)
    assert sorted(pages.take(0) for _ in range(64)) == list(range(64))
    assert pages.take(0) == -1
    assert pages.free_pages() == 0


def test_runs_are_aligned_and_do_not_overlap(rng: random.Random) -> None:
    """Random takes and gives against a plain set of pages."""
    pages, taken = Pages(256), dict[int, int]()
    owned: set[int] = set()
    for _ in range(5000):
        order = rng.randrange(6)
        if rng.random() < 0.5 and taken:
            page = rng.choice(list(taken))
            order = taken.pop(page)
            pages.give(page, order)
            owned -= set(range(page, page + (1 << order)))
        elif (page := pages.take(order)) >= 0:
            run = set(range(page, page + (1 << order)))
            assert page % (1 << order) == 0
            assert max(run) < 256
            assert not run & owned
            taken[page] = order
            owned |= run
        assert pages.free_pages() == 256 - len(owned)
    for page, order in taken.items():
        pages.give(page, order)
    assert pages.take(8) == 0, "all runs merge again"


def test_kept_runs_do_not_make_a_long_run_fail() -> None:
    """Runs kept for quick reuse are merged as soon as they are missed."""
    pages = Pages(16)
    runs = [pages.take(0) for _ in range(16)]
    for page in runs:
        pages.give(page, 0)
    assert len(runs) > KEPT
    assert pages.take(4) == 0


def test_a_run_longer_than_the_arena_is_not_there() -> None:
    """Too much is an answer, not an error."""
    assert Pages(16).take(5) == -1


def test_a_reserved_run_is_not_given() -> None:
    """Pages of a predecessor's slot stay out of reach until they are given back."""
    pages = Pages(16)
    assert pages.reserve(6, 1)
    assert pages.free_pages() == 14
    got = [pages.take(0) for _ in range(14)]
    assert not {6, 7} & set(got)
    assert pages.take(0) == -1
    pages.give(6, 1)
    assert pages.take(1) == 6


@pytest.mark.parametrize(
    ("page", "order"), [(6, 1), (4, 2), (0, 4), (7, 0), (3, 1), (16, 0), (0, 9)]
)
def test_what_is_taken_or_no_run_cannot_be_reserved(page: int, order: int) -> None:
    """An overlap, a crooked start or a place outside is refused and changes nothing."""
    pages = Pages(16)
    pages.reserve(6, 1)
    assert not pages.reserve(page, order)
    assert pages.free_pages() == 14
