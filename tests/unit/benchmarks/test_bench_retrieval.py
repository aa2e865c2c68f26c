"""The retrieval measurement counts what is found, and would see an index that finds nothing."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import retrieval
from tpo_mp.store import rag_table


def test_most_questions_find_their_document() -> None:
    """Among those of other tenants; the ranks agree with each other."""
    row = retrieval.measure(0.01)
    assert row["questions"] == len(json.loads(retrieval.CORPUS.read_text()))
    assert 0.6 <= row["recall_at_1"] <= row["mean_reciprocal_rank"] <= row["recall_at_4"] + 0.05
    assert row["recall_at_4"] >= 0.75


def test_an_index_that_finds_the_wrong_ones_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is of what the search answers, not of the corpus."""
    monkeypatch.setattr(rag_table, "_WORD", re.compile("the|of|is"))
    assert retrieval.measure(0.01)["recall_at_1"] < 0.3
