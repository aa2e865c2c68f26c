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

TRUE = StepCosts(base_s=0.004, prefill_token_s=4e-5, sequence_s=3e-4)


def test_costs_are_found_again_from_what_an_engine_shows():
    """Fitted at two numbers of clients, right at the others, beyond the cliff too."""

    def shown(costs, clients):
        table = Table("steady", vllm.PROMPT, vllm.ANSWER, ())
        ttft, itl = serve(replace(vllm.SHAPE, costs=costs), table, clients)
        return {"ttft_ms": ttft, "itl_ms": itl}

    found = vllm.fitted([{n: shown(TRUE, n) for n in vllm.KNOWN}])
    for clients in (2, 16, 32):
        for field, wanted in shown(TRUE, clients).items():
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
