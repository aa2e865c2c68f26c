"""An inference engine seen from inside: steps of continuous batching, without any I/O or clock.

::

    submit ──► waiting ──admit──► running ──► done
                  ▲                  │
                  └──── preempt ─────┘  blocks ran out: its KV is dropped and computed anew later

Time belongs to the caller: ``begin`` plans a step and says how long it takes, ``end`` does what is
true when it is over.  A step computes at most ``max_batched_tokens`` tokens: first one for each
sequence that decodes and the next piece of prompts under way, then prompts that wait.  A sequence
whose tokens are all computed gets its next one at the step's end.

Order is (priority, arrival); without the priority policy arrival alone.  When no block is free the
last of that order gives its own up, so the first always goes on and every admitted request ends.
Requests of more than ``max_loras`` adapters never run together: one whose adapter has no place
lets others pass.

Invariants: at most ``max_seqs`` run; no step computes more than its budget; a request that is over
holds no block; what waits is bounded by ``max_waiting``.

Source: vLLM's documentation of its V1 scheduler, chunked prefill and recompute preemption.
Known weakness: a request is one sequence, however many choices it asks for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from .engine_blocks import KvBlocks
from .engine_costs import StepCosts, StepWork


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """The limits of one engine; the caller checks that ``blocks`` hold ``max_model_tokens``."""

    max_seqs: int = 256
    max_batched_tokens: int = 8192
    max_waiting: int = 1000
    max_model_tokens: int = 131_072
    block_tokens: int = 16
    blocks: int = 28_672
    chunked_prefill: bool = True
    prefix_caching: bool = True
    by_priority: bool = False
    max_loras: int = 1
    costs: StepCosts = field(default_factory=StepCosts)


class EngineFull(Exception):
    """Too many requests wait already."""


class EngineRequest:
    """One request's way through the engine.

    ``names`` are its full blocks' chained hashes in order, prompt and answer together; there may be
    fewer than blocks.  Instants are the caller's seconds, -1 while not yet; ``before_at`` is that
    of the token before the last.  ``lora`` is the name of its adapter, empty for none.
    """

    __slots__ = (
        "answer_tokens", "arrived_at", "before_at", "blocks", "cached_tokens", "computed",
        "first_token_at", "generated", "last_token_at", "lora", "named", "names", "order", "over",
        "preemptions", "priority", "prompt_tokens", "started_at",
    )  # fmt: skip

    def __init__(
        self,
        prompt_tokens: int,
        answer_tokens: int,
        *,
        names: Sequence[bytes] = (),
        priority: int = 0,
        lora: str = "",
    ) -> None:
        self.prompt_tokens = max(prompt_tokens, 1)
        self.answer_tokens = max(answer_tokens, 1)
        self.names = names
        self.priority = priority
        self.lora = lora
        self.order = (0, 0)
        self.blocks: list[int] = []
        self.computed = 0
        self.generated = 0
        self.named = 0
        self.cached_tokens = -1
        self.preemptions = 0
        self.over = False
        self.arrived_at = self.started_at = -1.0
        self.first_token_at = self.before_at = self.last_token_at = -1.0

    @property
    def known(self) -> int:
        """Tokens whose KV can be computed: the prompt and what was generated."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True)
class EngineCounts:
    """What an engine did since it was made; tokens but for ``steps`` and ``preemptions``."""

    steps: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


_order = attrgetter("order")


class StepEngine:
    """The engine; see the module."""

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self.kv = KvBlocks(shape.blocks, caching=shape.prefix_caching)
        self.counts = EngineCounts()
        self.running: list[EngineRequest] = []
        self.waiting: list[EngineRequest] = []
        self.plan: list[tuple[EngineRequest, int]] = []
        self.work = StepWork()
        self.stepping = False
        self.adapts = False
        """Whether any request ever named an adapter."""
        self.held = False
        """Whether those that wait must go on waiting."""
        self._arrivals = 0

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that are held."""
        return 1.0 - self.kv.free / self.kv.total

    # -- requests -----------------------------------------------------------------------------

    def submit(self, request: EngineRequest, now: float) -> None:
        """Let a request wait; raises ``EngineFull``."""
        if len(self.waiting) >= self.shape.max_waiting and not self._can_start():
            raise EngineFull
        self._arrivals += 1
        request.order = (request.priority if self.shape.by_priority else 0, self._arrivals)
        request.arrived_at = now
        self.adapts = self.adapts or bool(request.lora)
        insort(self.waiting, request, key=_order)

    def cancel(self, request: EngineRequest) -> None:
        """Forget a request, wherever it is."""
        if request.over:
            return
        request.over = True
        for queue in (self.waiting, self.running):
            at = bisect_left(queue, request.order, key=_order)
            if at < len(queue) and queue[at] is request:
                del queue[at]
        self._drop_blocks(request)

    def put_back(self) -> None:
        """Let all that run wait again, without their blocks; not while a step is under way."""
        while self.running:
            self._put_back(self.running.pop())

    def _can_start(self) -> bool:
        """Whether nobody need wait: ``max_waiting`` of 0 still lets an idle engine work."""
        return not self.waiting and len(self.running) < self.shape.max_seqs

    # -- steps --------------------------------------------------------------------------------

    def begin(self, now: float) -> float:
        """Plan a step that starts now; its seconds, or 0 when there is nothing to do."""
        self.plan = []
        self.work = work = StepWork()
        budget = self.shape.max_batched_tokens
        left, preempted = self._go_on(budget)
        if not preempted and not self.held:
            self._admit(left, now)
        if not self.plan:
            return 0.0
        work.kv_share = self.kv_usage
        self.counts.steps += 1
        self.stepping = True
        return self.shape.costs.step_s(work)

    def end(self, now: float) -> list[EngineRequest]:
        """Finish the step; those who got a token by it, with ``over`` set on the last one."""
        self.stepping = False
        spoke = []
        for request, tokens in self.plan:
            if request.over:
                continue
            request.computed += tokens
            self._name_blocks(request)
            if request.computed == request.known:
                self._speak(request, now)
                spoke.append(request)
        self.plan = []
        if any(request.over for request in spoke):
            self.running = [request for request in self.running if not request.over]
        return spoke

    def _speak(self, request: EngineRequest, now: float) -> None:
        if not request.generated:
            request.first_token_at = now
            self.counts.prompt_tokens += request.prompt_tokens
        request.generated += 1
        request.before_at, request.last_token_at = request.last_token_at, now
        self.counts.generation_tokens += 1
        if request.generated >= request.answer_tokens:
            request.over = True
            self._drop_blocks(request)

    # -- planning -----------------------------------------------------------------------------

    def _go_on(self, budget: int) -> tuple[int, bool]:
        """Plan what runs already; the budget left, and whether anybody lost its blocks."""
        running, size = self.running, self.shape.block_tokens
        before = self.counts.preemptions
        at = 0
        while at < len(running) and budget > 0:
            request = running[at]
            tokens = min(request.prompt_tokens + request.generated - request.computed, budget)
            short = -(-(request.computed + tokens) // size) - len(request.blocks)
            if short > 0 and not self._make_room(request, short):
                break
            self._schedule(request, tokens)
            budget -= tokens
            at += 1
        return budget, self.counts.preemptions > before

    def _make_room(self, request: EngineRequest, short: int) -> bool:
        """Give a request more blocks, if need be the others'; ``False``: it lost its own."""
        while self.kv.free < short:
            victim = self.running.pop()
            self._put_back(victim)
            if victim is request:
                return False
        request.blocks += self.kv.take(short)
        return True

    def _put_back(self, victim: EngineRequest) -> None:
        self._drop_blocks(victim)
        victim.computed = 0
        victim.preemptions += 1
        self.counts.preemptions += 1
        insort(self.waiting, victim, key=_order)

    def _admit(self, budget: int, now: float) -> None:
        """Plan who waits, in order, as long as there is room."""
        shape = self.shape
        at = 0
        while at < len(self.waiting) and budget > 0 and len(self.running) < shape.max_seqs:
            request = self.waiting[at]
            if request.lora and not self._has_place(request.lora):
                at += 1  # those behind it need not wait for its adapter
                continue
            found = self._found(request)
            cached = len(found) * shape.block_tokens
            tokens = request.known - cached
            if tokens > budget:
                if not shape.chunked_prefill and self.plan:
                    return
                tokens = budget
            short = -(-(cached + tokens) // shape.block_tokens) - len(found)
            if self.kv.free - self.kv.idle(found) < short:
                return
            del self.waiting[at]
            self._start(request, found, short, now)
            self._schedule(request, tokens)
            budget -= tokens

    def _has_place(self, lora: str) -> bool:
        """Whether an adapter is in the batch, or fits beside those that are."""
        active = {request.lora for request in self.running if request.lora}
        return lora in active or len(active) < self.shape.max_loras

    def _found(self, request: EngineRequest) -> list[int]:
        """Blocks it need not compute; its last token it always must."""
        if not self.shape.prefix_caching:
            return []
        return self.kv.find(request.names[: (request.known - 1) // self.shape.block_tokens])

    def _start(self, request: EngineRequest, found: list[int], short: int, now: float) -> None:
        self.kv.share(found)
        request.blocks = found + self.kv.take(short)
        request.named = len(found)
        request.computed = len(found) * self.shape.block_tokens
        if request.cached_tokens < 0:
            request.started_at = now
            request.cached_tokens = request.computed
            self.counts.prefix_queries += request.prompt_tokens
            self.counts.prefix_hits += request.computed
        insort(self.running, request, key=_order)

    def _schedule(self, request: EngineRequest, tokens: int) -> None:
        work = self.work
        if request.generated and request.known - request.computed == 1:
            work.sequences += 1
            work.context_tokens += request.computed
        else:
            work.prefill_tokens += tokens
            work.prefill_pairs += tokens * (request.computed + 0.5 * tokens)
        self.plan.append((request, tokens))

    # -- blocks -------------------------------------------------------------------------------

    def _name_blocks(self, request: EngineRequest) -> None:
        full = min(request.computed // self.shape.block_tokens, len(request.names))
        while request.named < full:
            self.kv.name(request.blocks[request.named], request.names[request.named])
            request.named += 1

    def _drop_blocks(self, request: EngineRequest) -> None:
        self.kv.give(request.blocks)
        request.blocks = []
        request.named = 0
