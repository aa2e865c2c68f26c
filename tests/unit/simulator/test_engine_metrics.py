"""The engine's series: vLLM's names in either generation, and figures that agree."""

from __future__ import annotations

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.scrape import Family
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_metrics import EngineMetrics, Names, upto
from tpo_mp.simulator.engine_room import EngineRoom, Guest
from tpo_mp.simulator.engine_steps import EngineRequest, EngineShape
from tpo_mp.simulator.timer import timer_of

CHANGED = {
    "new": {"vllm:kv_cache_usage_perc", "vllm:inter_token_latency_seconds",
            "vllm:request_time_per_output_token_seconds"},
    "old": {"vllm:gpu_cache_usage_perc", "vllm:time_per_output_token_seconds"},
}  # fmt: skip


def run(names: Names) -> dict[str, Family]:
    """Three requests of two sizes through an engine for two; what a scrape sees."""
    world, arena = FakeWorld(), MetricsArena.create(1)
    shape = EngineShape(max_seqs=2, costs=StepCosts(base_s=0.01))
    metrics = EngineMetrics(arena.block(0, 1), shape, "m", names)
    room = EngineRoom(shape, timer_of(world.env), world.env.clock, metrics)
    for tokens in (5, 5, 3):
        guest = Guest(EngineRequest(20, tokens), lambda _: None, "length", 1, tokens)
        room.submit(guest, world.now)
    gone = Guest(EngineRequest(20, 99), lambda _: None)
    room.submit(gone, world.now)
    for turn in range(30):
        world.advance(0.01)
        if turn == 2:
            room.cancel(gone)
    found = {family.name: family for family in arena.collect()}
    arena.close()
    return found


def total(family: Family, **labels: str) -> float:
    """The value of one series."""
    (sample,) = [s for s in family.samples if labels.items() <= dict(s.labels).items()]
    return sample.value


@pytest.mark.parametrize("names", ["new", "old", "both"])
def test_names_are_of_the_chosen_generation(names: Names) -> None:
    """Those that never changed are always there."""
    found = set(run(names))
    wanted = CHANGED["new"] | CHANGED["old"] if names == "both" else CHANGED[names]
    assert found & (CHANGED["new"] | CHANGED["old"]) == wanted
    assert {"vllm:num_requests_running", "vllm:time_to_first_token_seconds"} <= found


def test_figures_agree_with_what_happened() -> None:
    """Counts, sums and ends."""
    found = run("new")
    assert total(found["vllm:generation_tokens_total"]) == 13
    assert total(found["vllm:prompt_tokens_total"]) == 60
    assert total(found["vllm:request_success_total"], finished_reason="length") == 3
    assert total(found["vllm:request_success_total"], finished_reason="abort") == 1
    assert total(found["vllm:time_to_first_token_seconds"]) == 3
    assert total(found["vllm:inter_token_latency_seconds"]) == 10
    (gaps,) = found["vllm:inter_token_latency_seconds"].samples
    assert gaps.sum == pytest.approx(0.10, rel=0.01)
    (queue,) = found["vllm:request_queue_time_seconds"].samples
    assert 0.04 < queue.sum < 0.08
    for level in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        assert total(found[level]) == 0
    labels = dict(found["vllm:num_requests_running"].samples[0].labels)
    assert labels == {"model_name": "m", "engine": "0"}


def test_token_bounds_reach_the_model_length() -> None:
    """In steps of 1, 2, 5."""
    assert upto(100) == (1, 2, 5, 10, 20, 50, 100)
    assert upto(131_072)[-1] == 100_000
