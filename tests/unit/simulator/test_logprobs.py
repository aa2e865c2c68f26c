"""Log probabilities: one row per token, chosen first, never more than certain."""

from __future__ import annotations

from math import exp
from random import Random

import pytest

from tpo_mp.simulator.logprobs import rows_of


@pytest.mark.parametrize("alternatives", [0, 1, 5, 20])
def test_rows_are_sound(alternatives: int) -> None:
    """As many alternatives as asked, in order, adding up to at most one."""
    rows = rows_of([" the", "x", "ü"], alternatives, Random(1))
    assert [row["token"] for row in rows] == [" the", "x", "ü"]
    assert rows[2]["bytes"] == [0xC3, 0xBC]
    for row in rows:
        tops = row["top_logprobs"]
        assert len(tops) == alternatives
        assert len({top["token"] for top in tops}) == alternatives
        if alternatives:
            assert tops[0]["token"] == row["token"]
            assert [top["logprob"] for top in tops] == sorted(
                (t["logprob"] for t in tops), reverse=True
            )
            assert sum(exp(top["logprob"]) for top in tops) <= 1.0001
