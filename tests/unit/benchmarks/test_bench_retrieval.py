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


def test_an_order_by_meaning_is_measured_beside_that_of_words() -> None:
    """With vectors that know the answer, what was found at all comes first; with others it is last.

    A rank of 1 is then only left to questions of which nothing else was found.
    """
    corpus = json.loads(retrieval.CORPUS.read_text())
    answer = {one["question"]: one["text"] for one in corpus}

    def knowing(right: list[float], wrong: list[float]) -> retrieval.Embed:
        def embed(texts: list[str]) -> bytes:
            wanted = answer[texts[0]].split()
            found = [right if text.split()[: len(wanted)] == wanted else wrong for text in texts]
            data = [{"index": n, "embedding": v} for n, v in enumerate([[1.0, 0.0], *found[1:]])]
            return json.dumps({"data": data}).encode()

        return embed

    best = retrieval.measure(0.01, knowing([1.0, 0.0], [0.0, 1.0]))
    assert best["recall_at_1_reranked"] == best["recall_at_4_reranked"]
    assert best["recall_at_1_reranked"] > best["recall_at_1"]
    worst = retrieval.measure(0.01, knowing([0.0, 1.0], [1.0, 0.0]))
    assert worst["recall_at_1_reranked"] < worst["recall_at_1"]
