"""The polynomial of a step's time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.simulator.engine_costs import LEAST_S, StepCosts, StepWork
from tpo_mp.simulator.engine_steps import EngineRequest, EngineShape, StepEngine


def test_each_kind_of_work_has_its_price() -> None:
    """And only work that is there is paid for."""
    costs = StepCosts(
        base_s=1, prefill_base_s=2, decode_base_s=4, prefill_token_s=0.5, prefill_pair_s=0.25,
        sequence_s=8, context_token_s=0.125, kv_share_s=16, kv_share2_s=32,
    )  # fmt: skip
    prefill = StepWork(prefill_tokens=4, prefill_pairs=8, kv_share=0.5)
    decode = StepWork(sequences=2, context_tokens=8, kv_share=0.5)
    assert costs.step_s(StepWork()) == 1
    assert costs.step_s(prefill) == 1 + 2 + 0.5 * 4 + 0.25 * 8
    assert costs.step_s(decode) == 1 + 4 + 8 * 2 + 0.125 * 8 + 16 * 0.5 + 32 * 0.25
    assert StepCosts().step_s(prefill) == LEAST_S


@given(st.integers(1, 3000), st.integers(1, 700))
def test_attention_costs_the_same_however_a_prompt_is_cut(prompt: int, budget: int) -> None:
    """The pairs of all its pieces are those of the whole."""
    shape = EngineShape(max_batched_tokens=budget, costs=StepCosts(prefill_pair_s=1.0))
    engine = StepEngine(shape)
    engine.submit(EngineRequest(prompt, 1), 0.0)
    pairs = 0.0
    while engine.begin(0.0):
        pairs += engine.work.prefill_pairs
        engine.end(0.0)
    assert pairs == pytest.approx(prompt * prompt / 2)
