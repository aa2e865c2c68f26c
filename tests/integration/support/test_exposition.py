"""The lint of metrics pages finds what it looks for."""

from __future__ import annotations

import pytest

from tests.support.exposition import problems

GOOD = """\
# HELP a_total A.
# TYPE a_total counter
a_total{x="1"} 2.0
# HELP b B.
# TYPE b gauge
b -1.0
# HELP c_seconds C.
# TYPE c_seconds histogram
c_seconds_bucket{le="0.1"} 1.0
c_seconds_bucket{le="+Inf"} 2.0
c_seconds_sum 3.0
c_seconds_count 2.0
"""


def test_good_page_has_no_problems() -> None:
    """One family of each type."""
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# TYPE b gauge\n", "", "b: no type"),
        ("# HELP b B.\n", "", "b: no help"),
        ('a_total{x="1"} 2.0\n', 'a_total{x="1"} 2.0\na_total{x="1"} 3.0\n', "twice"),
        ('a_total{x="1"} 2.0', 'a_total{x="1"} -2.0', "-2.0"),
        ("c_seconds_count 2.0", "c_seconds_count 3.0", "the last bucket is not the count"),
        ('{le="0.1"} 1.0', '{le="0.1"} 5.0', "buckets do not ascend"),
        ("c_seconds", "c_ms", "not a base unit"),
        ("b -1.0\n", "b -1.0\n# TYPE b gauge\n", "declared twice"),
    ],
)
def test_each_fault_is_found(old: str, new: str, problem: str) -> None:
    """And named."""
    assert any(problem in found for found in problems(GOOD.replace(old, new)))
