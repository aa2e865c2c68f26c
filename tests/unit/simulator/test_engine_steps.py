"""Steps of the simulated engine, one by one; its promises under any load are a property test's."""

from __future__ import annotations

import pytest

from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_steps import EngineFull, EngineRequest, EngineShape, StepEngine

COSTS = StepCosts(base_s=1.0, prefill_token_s=0.01)


def engine(**limits: int | bool) -> StepEngine:
    """A small one."""
    shape = {"max_seqs": 4, "max_batched_tokens": 8, "block_tokens": 4, "blocks": 16,
             "max_model_tokens": 64} | limits  # fmt: skip
    return StepEngine(EngineShape(costs=COSTS, **shape))  # type: ignore[arg-type]


def step(made: StepEngine) -> dict[int, int]:
    """Tokens that one step computes, by place of arrival."""
    made.begin(0.0)
    plan = {request.order[1]: tokens for request, tokens in made.plan}
    made.end(1.0)
    return plan


def submit(made: StepEngine, *requests: EngineRequest) -> None:
    """Submit some in order."""
    for request in requests:
        made.submit(request, 0.0)


def test_long_prompt_is_computed_in_pieces_while_others_decode() -> None:
    """Sequences that decode come first in a step, then as much of a prompt as fits."""
    made = engine()
    submit(made, EngineRequest(3, 4), EngineRequest(12, 2))
    assert step(made) == {1: 3, 2: 5}
    assert step(made) == {1: 1, 2: 7}
    assert step(made) == {1: 1, 2: 1}
    assert step(made) == {1: 1}
    assert step(made) == {}


def test_whole_prompts_wait_for_a_step_of_their_own() -> None:
    """Without chunked prefill."""
    made = engine(chunked_prefill=False, max_model_tokens=8)
    submit(made, EngineRequest(6, 1), EngineRequest(6, 1))
    assert step(made) == {1: 6}
    assert step(made) == {2: 6}


def test_last_to_come_gives_its_blocks_up_and_is_computed_anew() -> None:
    """Nothing it said is lost, and it says no token twice."""
    made = engine(blocks=4, max_model_tokens=16, max_batched_tokens=16)
    first, last = EngineRequest(7, 6), EngineRequest(7, 6)
    submit(made, first, last)
    assert step(made) == {1: 7, 2: 7}
    assert step(made) == {1: 1, 2: 1}
    assert step(made) == {1: 1}
    assert (last.generated, last.blocks, made.counts.preemptions) == (2, [], 1)
    while not first.over:
        step(made)
    assert step(made) == {2: 9}
    assert (last.generated, last.preemptions) == (3, 1)


def test_lower_priority_number_goes_first() -> None:
    """Among those who wait; and who came last of the least urgent gives up first."""
    made = engine(by_priority=True, max_seqs=1)
    submit(made, EngineRequest(4, 1, priority=5), EngineRequest(4, 1, priority=-1))
    assert step(made) == {2: 4}
    assert step(made) == {1: 4}


def test_queue_has_an_end_and_an_idle_engine_none() -> None:
    """One that may not wait at all is still served when nobody is before it."""
    made = engine(max_seqs=1, max_waiting=1)
    submit(made, EngineRequest(1, 9))
    step(made)
    submit(made, EngineRequest(1, 9))
    with pytest.raises(EngineFull):
        made.submit(EngineRequest(1, 9), 0.0)
    submit(engine(max_waiting=0), EngineRequest(1, 1))


def test_cancelled_request_frees_all_it_had() -> None:
    """Running, waiting, or in the middle of a step."""
    made = engine(max_seqs=1)
    running, waiting = EngineRequest(8, 9), EngineRequest(8, 9)
    submit(made, running, waiting)
    made.begin(0.0)
    made.cancel(running)
    made.cancel(waiting)
    assert made.end(1.0) == []
    assert made.kv.free == 16
    assert made.running + made.waiting == []


def test_known_beginning_is_not_computed_again() -> None:
    """Whole blocks of it, but never the last token."""
    made = engine(max_batched_tokens=32)
    names = [b"a", b"b"]
    submit(made, EngineRequest(8, 1, names=names))
    assert step(made) == {1: 8}
    again, other = EngineRequest(8, 1, names=names), EngineRequest(9, 1, names=[b"a", b"c"])
    submit(made, again, other)
    assert step(made) == {2: 4, 3: 5}
    assert (again.cached_tokens, other.cached_tokens) == (4, 4)
    assert made.counts.prefix_hits == 8


def test_beyond_its_batch_an_engine_keeps_its_pace_and_lets_wait() -> None:
    """The cliff: ITL stands still while TTFT grows with everyone who comes."""
    shape = EngineShape(
        max_seqs=8,
        max_batched_tokens=256,
        costs=StepCosts(base_s=0.01, sequence_s=0.002, prefill_token_s=1e-5),
    )
    first_s, gap_s = {}, {}
    for clients in (1, 4, 8, 16, 32):
        first_s[clients], gap_s[clients] = closed_loop(shape, clients)
    assert gap_s[1] < gap_s[4] < gap_s[8]
    assert gap_s[32] == pytest.approx(gap_s[8], rel=0.05)
    assert first_s[8] < 0.1
    served_s = first_s[16] + gap_s[16] * 49
    assert first_s[16] == pytest.approx(served_s * 8 / 16, rel=0.1)
    assert first_s[32] > 2.5 * first_s[16]


def closed_loop(shape: EngineShape, clients: int) -> tuple[float, float]:
    """Mean wait and gap of clients who ask again at once, 50 tokens each time."""
    made, now = StepEngine(shape), 0.0
    done: list[EngineRequest] = []
    submit(made, *(EngineRequest(20, 50) for _ in range(clients)))
    while len(done) < 6 * clients:
        now += made.begin(now)
        for request in made.end(now):
            if request.over:
                done.append(request)
                made.submit(EngineRequest(20, 50), now)
    late = done[2 * clients :]
    first = sum(r.first_token_at - r.arrived_at for r in late) / len(late)
    return first, sum((r.last_token_at - r.first_token_at) / 49 for r in late) / len(late)
