"""The comparison with a real vLLM: what is asked of both, and what costs are found."""

import tomllib
from dataclasses import replace

import msgspec
import pytest

from benchmarks.bench import Options
from benchmarks.engine_fit import Table, serve
from benchmarks.scenarios import vllm
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_options import EngineOptions

TRUE = StepCosts(base_s=0.0035, prefill_base_s=0.006, prefill_token_s=1e-5, sequence_s=2e-4)


def shown(costs, clients, prompt=vllm.PROMPT):
    """What an engine of these costs shows."""
    table = Table("returning", prompt, vllm.ANSWER, ())
    ttft, itl = serve(replace(vllm.SHAPE, costs=costs), table, clients)
    return {"ttft_ms": ttft, "itl_ms": itl}


@pytest.mark.parametrize(
    "true", [TRUE, StepCosts(base_s=0.004, prefill_base_s=2e-4, prefill_token_s=4e-5,
                             sequence_s=3e-4)],
)  # fmt: skip
def test_costs_are_found_again_from_what_an_engine_shows(true):
    """Right at numbers of clients they were not fitted to, beyond the cliff too.

    Whether the most of a prompt's time is that of its tokens, or would be that of an empty one.
    """
    alone = [{prompt: shown(true, 1, prompt) for prompt in vllm.LENGTHS}]
    found = vllm.fitted([{n: shown(true, n) for n in vllm.KNOWN}], alone)
    for clients in (2, 4, 12, 16, 32):
        for field, wanted in shown(true, clients).items():
            assert shown(found, clients)[field] == pytest.approx(wanted, rel=0.1), (clients, field)


def test_the_simulator_is_told_vllm_s_limits():
    """In words that it takes."""
    engine = tomllib.loads(vllm.configured(TRUE))["simulator"]["engines"]["fitted"]
    options = msgspec.convert(engine, EngineOptions)
    assert not list(options.problems())
    assert options.shape() == replace(vllm.SHAPE, costs=TRUE)


def test_without_a_vllm_nothing_is_measured():
    """And the report says why."""

    class NoBench:
        options = Options()

    found = vllm.run(NoBench())
    assert {series.skipped for series in found.values()} == {"no vLLM was named (--vllm PROGRAM)"}
