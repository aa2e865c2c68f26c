"""Adding up: seats' series become one series each."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest

from tpo_mp.shm.scrape import FamilyFold, Sample
from tpo_mp.shm.segment import Segment
from tpo_mp.shm.series import ARENA_HEADER, BLOCK_BYTES, FIRST_CELL, BlockView, Kind, SeriesEntry


@pytest.fixture
def seats() -> Iterator[list[BlockView]]:
    """Two seats' blocks."""
    memory = Segment.create("arena", ARENA_HEADER + 2 * BLOCK_BYTES)
    yield [BlockView(memory.buf, seat) for seat in range(2)]
    memory.close()


def series(kind: Kind, label: str = "a", bounds: tuple[float, ...] = ()) -> SeriesEntry:
    """A record of the block's first cells."""
    return SeriesEntry("m", "Help.", kind, (("l", label),), bounds, FIRST_CELL)


def test_counters_and_gauges_are_added(seats: list[BlockView]) -> None:
    """Same name and labels, any seat."""
    counters, gauges = FamilyFold("Help.", "counter"), FamilyFold("Help.", "gauge")
    for n, block in enumerate(seats):
        block.cells[FIRST_CELL] = 10 + n
        counters.add(series("counter"), block)
        block.levels[FIRST_CELL] = 0.5 + n
        gauges.add(series("gauge"), block)
    assert counters.family("m").samples == (Sample((("l", "a"),), 21),)
    assert gauges.family("m").samples == (Sample((("l", "a"),), 2.0),)


def test_labels_keep_series_apart(seats: list[BlockView]) -> None:
    """Another value is another sample."""
    fold = FamilyFold("Help.", "counter")
    seats[0].cells[FIRST_CELL] = 1
    seats[1].cells[FIRST_CELL] = 2
    fold.add(series("counter", "a"), seats[0])
    fold.add(series("counter", "b"), seats[1])
    assert [sample.value for sample in fold.family("m").samples] == [1, 2]


def test_a_histogram_is_cumulative(seats: list[BlockView]) -> None:
    """Buckets add up, the last is the count, the sum is in the metric's unit."""
    fold = FamilyFold("Help.", "histogram")
    for block in seats:
        for i, n in enumerate((1, 2, 3, 1_500_000)):
            block.cells[FIRST_CELL + i] = n
        fold.add(series("histogram", bounds=(0.1, 1.0)), block)
    (sample,) = fold.family("m").samples
    assert sample.buckets == ((0.1, 2), (1.0, 6), (inf, 12))
    assert sample.value == 12
    assert sample.sum == 3.0


def test_other_bounds_are_folded_into_wider_ones(seats: list[BlockView]) -> None:
    """Nothing is lost, and nothing is counted below its value."""
    fold = FamilyFold("Help.", "histogram")
    fold.add(series("histogram", bounds=(0.1, 1.0)), seats[0])
    for i, n in enumerate((1, 2, 4, 8, 9_000_000)):
        seats[1].cells[FIRST_CELL + i] = n
    fold.add(series("histogram", bounds=(0.05, 0.5, 5.0)), seats[1])
    (sample,) = fold.family("m").samples
    assert sample.buckets == ((0.1, 1), (1.0, 3), (inf, 15))
    assert sample.sum == 9.0
