"""Medians, spreads and percentiles."""

import pytest

from benchmarks.stats import median, percentile, spread


def test_median_of_an_even_number_is_the_middle_of_the_two():
    """The usual definition, nothing clever."""
    assert median([4, 1, 3, 2]) == 2.5


def test_spread_is_half_the_range_per_median():
    """Ten percent either way reads 0.1."""
    assert spread([90, 100, 110]) == pytest.approx(0.1)


def test_spread_of_a_zero_median_is_zero():
    """A share of nothing is nothing."""
    assert spread([-1, 0, 1]) == 0.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)]
)
def test_percentile_is_a_value_that_was_seen(share, expected):
    """No interpolation: the answer is one of the samples."""
    assert percentile(range(1, 101), share) == expected


def test_percentile_of_one_value_is_that_value():
    """A single sample is every percentile."""
    assert percentile([7.0], 0.99) == 7.0
