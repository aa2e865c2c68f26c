"""The simulated engine keeps its promises under any load, and plans as a slow, plain copy does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.effort import examples
from tpo_mp.simulator.engine_blocks import KvBlocks
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_steps import EngineFull, EngineRequest, EngineShape, StepEngine

BLOCK = 4
MOST = 40
"""Tokens of the longest request; every shape has the blocks for one of it."""


@dataclass
class Asked:
    """One thing that happens in front of a step."""

    prompt: list[int]
    answer: int
    priority: int
    cancels: int | None


asked = st.builds(
    Asked,
    prompt=st.lists(st.integers(0, 1), min_size=1, max_size=MOST // 2),
    answer=st.integers(1, MOST // 2),
    priority=st.integers(-1, 1),
    cancels=st.none() | st.integers(0, 30),
)
turns = st.lists(st.lists(asked, max_size=4), min_size=1, max_size=12)


def shapes(**fixed: Any) -> st.SearchStrategy[EngineShape]:
    """Small engines of every kind."""
    return st.builds(
        EngineShape,
        max_seqs=st.integers(1, 5),
        max_batched_tokens=st.integers(MOST, MOST * 2) | st.integers(1, 8),
        max_waiting=st.integers(0, 6),
        max_model_tokens=st.just(MOST),
        block_tokens=st.just(BLOCK),
        blocks=st.integers(MOST // BLOCK, 24),
        by_priority=st.booleans(),
        costs=st.just(StepCosts(base_s=1.0)),
        **fixed,
    )


def names_of(tokens: list[int]) -> list[bytes]:
    """Chained hashes of full blocks, with an answer nobody shares."""
    chain, names = b"", []
    for at in range(0, len(tokens) - BLOCK + 1, BLOCK):
        chain = blake2b(chain + bytes(tokens[at : at + BLOCK]), digest_size=8).digest()
        names.append(chain)
    return names


def drive(
    engine: StepEngine,
    load: list[list[Asked]],
    look: Callable[[list[EngineRequest]], None],
    names: bool = True,
) -> list[EngineRequest]:
    """Feed a load step by step, then run until nothing is left; who was let in."""
    let_in: list[EngineRequest] = []
    now = 0.0
    for turn in [*load, *[[]] * 3000]:
        for one in turn:
            if one.cancels is not None and one.cancels < len(let_in):
                engine.cancel(let_in[one.cancels])
            request = EngineRequest(
                len(one.prompt),
                one.answer,
                names=names_of(one.prompt) if names else (),
                priority=one.priority,
            )
            try:
                engine.submit(request, now)
            except EngineFull:
                assert len(engine.waiting) >= engine.shape.max_waiting
            else:
                let_in.append(request)
        took = engine.begin(now)
        if not took and not turn and not engine.waiting:
            break
        look(let_in)
        now += took
        engine.end(now)
        look(let_in)
    return let_in


@settings(deadline=None, max_examples=examples(150))
@given(shapes(chunked_prefill=st.just(True), prefix_caching=st.booleans()), turns)
def test_engine_keeps_its_promises(shape: EngineShape, load: list[list[Asked]]) -> None:
    """Blocks never lost or doubly owned, the budget kept, limits held, and everybody ends."""
    engine = StepEngine(shape)

    def look(let_in: list[EngineRequest]) -> None:
        held = Counter(block for request in let_in for block in request.blocks)
        assert len(held) + engine.kv.free == shape.blocks
        for block, holders in held.items():
            assert engine.kv.holders(block) == holders
        assert sum(tokens for _, tokens in engine.plan) <= shape.max_batched_tokens
        assert len(engine.running) <= shape.max_seqs
        queued = engine.running + engine.waiting
        assert len({id(request) for request in queued}) == len(queued)
        assert {id(r) for r in let_in if not r.over} == {id(r) for r in queued if not r.over}
        assert not [r for r in let_in if r.over and r.blocks]
        for queue in (engine.running, engine.waiting):
            assert [r.order for r in queue] == sorted(r.order for r in queue)
        for request in engine.running:
            assert len(request.blocks) * BLOCK >= request.computed

    let_in = drive(engine, load, look)
    assert all(request.over for request in let_in)
    assert engine.kv.free == shape.blocks


@settings(deadline=None, max_examples=examples(100))
@given(shapes(chunked_prefill=st.just(True), prefix_caching=st.just(True)), turns)
def test_cached_tokens_are_whole_known_blocks(shape: EngineShape, load: list[list[Asked]]) -> None:
    """Never more than any prompt before had in common, and with room for all exactly that."""
    roomy = StepEngine(
        EngineShape(max_seqs=1, max_batched_tokens=MOST, max_waiting=1000, blocks=4000,
                    max_model_tokens=MOST, block_tokens=BLOCK)
    )  # fmt: skip
    for engine in (StepEngine(shape), roomy):
        asked_for = [one for turn in load for one in turn if one.cancels is None]
        let_in = drive(engine, [[one] for one in asked_for], lambda _: None)
        for at, request in enumerate(let_in):
            whole = request.names[: (request.prompt_tokens - 1) // BLOCK]
            before = {name for other in let_in if other is not request for name in other.names}
            assert request.cached_tokens % BLOCK == 0
            assert request.cached_tokens <= BLOCK * shared(whole, before)
            if engine is roomy:
                seen = {name for other in let_in[:at] for name in other.names}
                assert request.cached_tokens == BLOCK * shared(whole, seen)


def shared(names: Any, known: set[bytes]) -> int:
    """How many names in a row are known."""
    count = 0
    for name in names:
        if name not in known:
            break
        count += 1
    return count


@dataclass
class Slow:
    """The scheduler written down once more: no prefixes, everything counted anew at each step."""

    shape: EngineShape
    requests: list[dict[str, Any]] = field(default_factory=list)

    def submit(self, number: int, one: Asked) -> None:
        """Queue one."""
        first = one.priority if self.shape.by_priority else 0
        self.requests.append(
            {"order": (first, number), "prompt": len(one.prompt), "answer": one.answer,
             "said": 0, "done": 0, "held": 0, "runs": False, "number": number}
        )  # fmt: skip

    def step(self) -> tuple[dict[int, int], list[int]]:
        """Tokens computed by each, and who spoke."""
        shape, plan, lost = self.shape, {}, False
        budget = shape.max_batched_tokens
        self.requests.sort(key=lambda r: r["order"])
        for request in [r for r in self.requests if r["runs"]]:
            if not request["runs"] or not budget:
                continue
            tokens = min(request["prompt"] + request["said"] - request["done"], budget)
            needs = self.blocks(request["done"] + tokens)
            while self.free() + request["held"] < needs and request["runs"]:
                last = [r for r in self.requests if r["runs"]][-1]
                last.update(runs=False, done=0, held=0)
                lost = True
            if request["runs"]:
                request["held"] = max(needs, request["held"])
                plan[request["number"]] = tokens
                budget -= tokens
        for request in [] if lost else [r for r in self.requests if not r["runs"]]:
            tokens = min(request["prompt"] + request["said"], budget)
            full = sum(r["runs"] for r in self.requests) == shape.max_seqs
            if full or not budget or self.free() < self.blocks(tokens):
                break
            request.update(runs=True, held=self.blocks(tokens))
            plan[request["number"]] = tokens
            budget -= tokens
        spoke = []
        for request in self.requests:
            request["done"] += plan.get(request["number"], 0)
            if request["number"] in plan and request["done"] == request["prompt"] + request["said"]:
                request["said"] += 1
                spoke.append(request["number"])
        self.requests = [r for r in self.requests if r["said"] < r["answer"]]
        return plan, sorted(spoke)

    def free(self) -> int:
        """Blocks nobody holds."""
        return self.shape.blocks - sum(r["held"] for r in self.requests)

    def blocks(self, tokens: int) -> int:
        """Blocks that so many tokens fill or begin."""
        return len(range(0, tokens, BLOCK))


@settings(deadline=None, max_examples=examples(150))
@given(
    shapes(chunked_prefill=st.just(True), prefix_caching=st.just(False)),
    st.lists(st.lists(asked, max_size=4), min_size=1, max_size=8),
)
def test_every_step_is_planned_as_the_plain_copy_plans_it(
    shape: EngineShape, load: list[list[Asked]]
) -> None:
    """Who computes how much, who is preempted and who speaks, step for step."""
    engine, slow = StepEngine(shape), Slow(shape)
    numbers: dict[int, int] = {}
    kept = []  # ids of requests are only theirs while they live
    for turn in [*load, *[[]] * 400]:
        for one in turn:
            request = EngineRequest(len(one.prompt), one.answer, priority=one.priority)
            try:
                engine.submit(request, 0.0)
            except EngineFull:
                continue
            kept.append(request)
            numbers[id(request)] = len(kept)
            slow.submit(len(kept), one)
        engine.begin(0.0)
        plan = {numbers[id(request)]: tokens for request, tokens in engine.plan}
        spoke = sorted(numbers[id(request)] for request in engine.end(0.0))
        assert (plan, spoke) == slow.step()
    assert not slow.requests
    assert not engine.running + engine.waiting


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(st.tuples(st.sampled_from(["take", "give", "share"]), st.integers(0, 9))))
def test_oldest_free_block_is_taken_first(acts: list[tuple[str, int]]) -> None:
    """Against a list of (freed when, block): least recently freed, names forgotten on reuse."""
    kv = KvBlocks(6)
    held: list[int] = []
    freed_at = {block: block - 6 for block in range(6)}
    name_of: dict[int, bytes] = {}
    for now, (act, which) in enumerate(acts):
        if act == "take" and kv.free:
            oldest = min((at, block) for block, at in freed_at.items() if block not in held)[1]
            assert kv.take(1) == [oldest]
            held.append(oldest)
            name_of.pop(oldest, None)
            name = b"%d" % which
            if name not in name_of.values():
                name_of[oldest] = name
            kv.name(oldest, name)
        elif act == "give" and held:
            block = held.pop(which % len(held))
            kv.give([block])
            freed_at[block] = now
        elif act == "share":
            found = kv.find([b"%d" % which])
            assert found == [b for b, n in name_of.items() if n == b"%d" % which]
            kv.share(found)
            held += found
        assert kv.free == 6 - len(set(held))
