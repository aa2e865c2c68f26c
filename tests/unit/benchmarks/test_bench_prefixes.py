"""The measurement of the prefix index looks up what was recorded, and judges by its gates."""

from __future__ import annotations

from benchmarks import prefixes


def test_a_row_tells_of_a_full_index() -> None:
    """Nearly all of what was recorded is found, no deeper and no less deep."""
    row = prefixes.measure(0.01)
    assert row["blocks"] >= prefixes.BLOCKS
    assert 0.95 < row["recall"] <= 1
    assert row["hash_us_per_kib"] > 0 < row["lookup_us"]


def test_a_figure_beyond_its_gate_is_not_met() -> None:
    """Each is judged by its own."""
    said = prefixes.judged({"hash_us_per_kib": 1.0, "lookup_us": 6.0})
    assert [line.rpartition(": ")[2] for line in said] == ["met", "not met"]
