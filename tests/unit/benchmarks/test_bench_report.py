"""Reports: medians per target, and comparisons that pair rounds."""

import pytest

from benchmarks.report import Series, load_all
from tests.unit.benchmarks.fakes import report


def test_median_and_spread_of_a_field():
    """The middle round and its surroundings."""
    series = report("relay", tpo=[{"cpu_us": 20.0}, {"cpu_us": 30.0}, {"cpu_us": 22.0}]).targets
    assert series["tpo"].median("cpu_us") == 22.0
    assert series["tpo"].spread("cpu_us") == pytest.approx(10 / 2 / 22)


def test_field_nobody_measured_is_none():
    """Absent is not zero."""
    assert Series().median("cpu_us") is None
    assert Series().spread("cpu_us") is None
    assert report("relay").median("tpo", "cpu_us") is None


def test_difference_pairs_rounds():
    """The middle of the differences is not the difference of the middles."""
    seen = report(
        "relay",
        tpo=[{"cpu_us": 10.0}, {"cpu_us": 30.0}, {"cpu_us": 20.0}],
        relay=[{"cpu_us": 9.0}, {"cpu_us": 10.0}, {"cpu_us": 19.0}],
    )
    assert seen.difference("tpo", "relay", "cpu_us") == 1.0
    assert seen.ratio("tpo", "relay", "cpu_us") == pytest.approx(10 / 9)


def test_round_that_one_target_missed_is_left_out():
    """Only rounds that measured both are compared."""
    seen = report("relay", tpo=[{"x": 1.0}, {"x": 5.0}], relay=[{"x": 1.0}])
    assert seen.difference("tpo", "relay", "x") == 0.0
    assert seen.difference("tpo", "nginx", "x") is None
    assert seen.ratio("tpo", "nginx", "x") is None


def test_failed_requests_are_summed_over_rounds_and_targets():
    """One failed request anywhere is one."""
    seen = report("relay", tpo=[{"failed": 0}, {"failed": 1}], relay=[{"failed": 2}])
    assert seen.failed(["tpo"]) == 1
    assert seen.failed(["tpo", "relay", "nginx"]) == 3


def test_reports_survive_their_files(tmp_path):
    """What was saved is what is loaded, by scenario."""
    first, second = report("relay", tpo=[{"x": 1.5}]), report("hop")
    first.save(tmp_path / "results")
    second.save(tmp_path / "results")
    assert load_all(tmp_path / "results") == {"relay": first, "hop": second}
