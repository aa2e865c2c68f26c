"""A simulated provider: every dialect first hand, the same answers, errors and faults to order.

The same backend is a gateway's (``kind = "simulator"``) and the whole of ``tpo-mp simulate``.
``tpo_mp.simulator`` makes the answers; here they become replies.
What a request may order by header is listed in ``tpo_mp.simulator.orders``.
When its tokens come is told by the timing of the call's model, see ``tpo_mp.simulator.timing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any, TypeAlias

from tpo_mp.config.prices import Prices, PricesSection
from tpo_mp.errors import ConfigError, NotFound, TpoError
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator.adapters import present, serves
from tpo_mp.simulator.breaking_off import in_turns
from tpo_mp.simulator.call_journal import CallJournal
from tpo_mp.simulator.engine_timing import RANK, Engines, EngineTiming, rank_of
from tpo_mp.simulator.failures import refusal
from tpo_mp.simulator.fault_frames import Frame, spoilt, struck
from tpo_mp.simulator.fixed_replies import FixedReplies
from tpo_mp.simulator.key_quotas import KeyQuotas
from tpo_mp.simulator.keys import KnownKeys
from tpo_mp.simulator.latency import latency_of
from tpo_mp.simulator.limits import Allowance, Standing
from tpo_mp.simulator.live import NOTHING_TOLD, LiveState, read_state
from tpo_mp.simulator.living import LivingBackend
from tpo_mp.simulator.obeying import TOO_LATE, Beginning, beginning, in_time
from tpo_mp.simulator.options import SimulatorOptions, speech_of
from tpo_mp.simulator.orders import NOTHING, ErrorOrder, FaultOrder, Orders, orders_of
from tpo_mp.simulator.own_ledger import OwnLedger
from tpo_mp.simulator.pacing import Alarm, SchedulePace, limited
from tpo_mp.simulator.prices import cost_line
from tpo_mp.simulator.provider import Answered, RefusalOrdered, SimulatedProvider
from tpo_mp.simulator.rate_limits import EXCEEDED, RateLimits
from tpo_mp.simulator.readings import reading
from tpo_mp.simulator.rendering import RenderedFrames
from tpo_mp.simulator.replay import Replay, error_of
from tpo_mp.simulator.rules import RuleBook
from tpo_mp.simulator.seeds import Occurrences
from tpo_mp.simulator.slow_writes import written_with
from tpo_mp.simulator.source import SimulatedStream, WholeAnswer
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import AT_ONCE, Asked, Pace, Timing
from tpo_mp.simulator.troubles import Troubles
from tpo_mp.types import Call, Dialect, Reply, Usage

Answering: TypeAlias = Callable[[Call, Orders], Awaitable[Reply]]
SSE = b"text/event-stream; charset=utf-8"
_EMBEDS = (Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS)
_NAP_S = 0.05
_COUNTS = (Dialect.ANTHROPIC_COUNT, Dialect.GEMINI_COUNT)
STEPS_AT_ONCE = 3
"""Choices made without a pause: two, and the end."""


class Config(SimulatorOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a simulated provider."""


class SimulatorBackend:
    """The backend of kind ``simulator``."""

    dialects = (
        Dialect.OPENAI_CHAT,
        Dialect.OPENAI_COMPLETIONS,
        Dialect.OPENAI_EMBEDDINGS,
        Dialect.OPENAI_RESPONSES,
        Dialect.ANTHROPIC_MESSAGES,
        Dialect.ANTHROPIC_COUNT,
        Dialect.ANTHROPIC_COMPLETE,
        Dialect.GEMINI,
        Dialect.GEMINI_COUNT,
        Dialect.GEMINI_EMBEDDINGS,
    )

    def __init__(self, config: Config, env: Env, state: LiveState = NOTHING_TOLD) -> None:
        for where, said in config.problems():
            raise ConfigError(f"backends.{config.name}.{where}: {said}")
        self.name = config.name
        self._env = env
        self._most_s = config.request_timeout_s
        self._asleep = state.sleep is not None
        self._ranked = any(engine.data_parallel_size > 1 for engine in config.engines.values())
        self._known = (*config.models, *config.model_map)
        self._adapts = bool(config.adapters) or state.adapters_loaded > 0
        self.adapters = present(config.adapters, self._known, state)
        self._models = [m for m in config.models if not set(m) & set("*?[")]
        own = OwnLedger(env.ledger, config.name)
        self._draws = Occurrences(config.repeats, partial(env.ledger.ordinal, crowd=True))
        self._trouble = Troubles(
            env,
            lambda call: reading(codec(call.dialect), call),
            faults=config.faults,
            scenario=config.scenario,
            scenarios=config.scenarios,
            seed=config.seed,
            state=state,
            chance=self._draws.chance,
            owner=config.name,
        )
        self._timer = timer_of(env)
        self._later_on = self._alarm  # bound once, for all the streams that keep it
        self._engines = Engines(config.name, config.engines, env, self._timer)
        self._latency = latency_of(config, env, self._timer, self._engines.offer)
        self._allowance = Allowance(config.requests_per_minute, config.tokens_per_minute)
        self._keys = KnownKeys(config.api_keys) if config.api_keys else None
        self.journal: CallJournal | None = None
        if config.journal.enabled:
            self.journal = CallJournal(config.journal, env.journal, env.clock)
        self._limits: RateLimits | None = None
        self._quotas: KeyQuotas | None = None
        exceeded = env.metrics.counter(EXCEEDED, "Requests over a simulated rate limit.")
        if config.limits.enforce:
            self._limits = RateLimits(
                config.name, config.limits, self._allowance, ledger=env.ledger, clock=env.clock,
                epoch=state.limits_epoch, exceeded=exceeded,
            )  # fmt: skip
        if config.quotas.spans():
            self._quotas = KeyQuotas(
                config.name, config.quotas, self._allowance, ledger=env.ledger, wall=time,
                epoch=state.limits_epoch, exceeded=exceeded,
            )  # fmt: skip
        self._provider = SimulatedProvider(
            speech_of(config),
            RuleBook(config.rules, config.strict, own.ordinal)
            if config.rules or (config.strict and not config.replay)
            else None,
        )
        priced = PricesSection(builtin=False, models=config.prices)
        self._prices = Prices(priced) if config.cost else None
        self._replay: Replay | None = None
        if config.replay:
            speed, strict = config.replay_speed, config.strict and not config.rules
            self._replay = Replay(Path(config.replay), speed, own, self._timer, strict)
        self._fixed: FixedReplies | None = None
        unlimited = self._limits is None and self._quotas is None
        if unlimited and self._replay is None and config.repeats != "vary":
            self._fixed = self._provider.fixed

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer, refuse or fail as the request, its orders and the rules say."""
        call.upstream_at = self._env.clock()
        call.seen = 0  # another attempt is another occurrence
        if (
            self._asleep
            and call.dialect not in _COUNTS
            and not isinstance(self._timing_of(call.model), EngineTiming)  # it has a queue
        ):
            return asyncio.get_running_loop().create_task(self._once_awake(call))
        return self._admitted(call)

    async def _once_awake(self, call: Call) -> Reply:
        """Wait as in the queue of an engine that sleeps; then answer."""
        while read_state(self._env.live)[1].sleep is not None:
            if not self._left_s(call):
                raise refusal(TOO_LATE, call, self._allowance)
            await asyncio.sleep(_NAP_S)
        return await self._admitted(call)

    def _admitted(self, call: Call) -> Awaitable[Reply]:
        """Answer who may ask."""
        if self._adapts and call.model not in self.adapters and not serves(self._known, call.model):
            # Routes remember a name, and this one was an adapter's.
            said = f"The model `{call.model[:120]}` does not exist."
            raise NotFound(said, reason="model_not_found", param="model")
        if self._keys is not None and not self._keys.knows(call.authorization):
            raise refusal(ErrorOrder(401), call, self._allowance)
        if self._trouble.counts_calls:
            counted = self._trouble.counted(call, self._infer)
            return asyncio.get_running_loop().create_task(counted)
        return self._infer(call)

    def _infer(self, call: Call) -> Awaitable[Reply]:
        orders = orders_of(call.forward)
        if not self._trouble.quiet:
            orders = self._trouble.meet(call, orders, self._key)
        elif self._fixed is not None and orders is NOTHING and not call.stream:
            said = self._at_once(call, self._fixed)
            if said is not None:
                return said
        if orders is NOTHING:
            return self._answer(call, orders)
        self._trouble.injected(orders)
        begin = beginning(orders, streamed=call.stream)
        return self._obeying(call, in_time(begin, self._left_s(call)), self._answer)

    def _at_once(self, call: Call, fixed: FixedReplies) -> Promise[Reply] | None:
        """The whole reply to a plain chat; None: it takes more than that."""
        if call.dialect is not Dialect.OPENAI_CHAT or self._timing_of(call.model):
            return None
        found = fixed.reply_to(call.body)
        if found is None:
            return None
        said: Promise[Reply] = Promise()
        reply = Reply(200, found.body, headers=self._lines(call, found.usage, None))
        reply.backend = self.name
        reply.usage, reply.finish_reason = found.usage, found.finish_reason
        said.resolve(reply)
        return said

    def _obeying(
        self,
        call: Call,
        begin: Beginning,
        answer: Answering,
        waited: Callable[[], None] | None = None,
    ) -> Awaitable[Reply]:
        """Wait, refuse or break off as ordered, or else answer; ``waited``: the wait is over."""
        if not begin.wait_s:
            return self._obey(call, begin, answer)
        said: Promise[Reply] = Promise()

        def done(reply: Reply, error: BaseException | None) -> None:
            said.resolve(reply) if error is None else said.reject(error)

        said.cancel_with = run(self._obey_later(call, begin, answer, waited), done)
        return said

    def _obey(self, call: Call, begin: Beginning, answer: Answering) -> Awaitable[Reply]:
        if begin.end is not None:
            raise begin.end
        if begin.left.error is not None:
            raise refusal(begin.left.error, call, self._allowance)
        return answer(call, begin.left)

    async def _obey_later(
        self,
        call: Call,
        begin: Beginning,
        answer: Answering,
        waited: Callable[[], None] | None,
    ) -> Reply:
        rung: Promise[None] = Promise()
        rung.cancel_with = self._alarm(begin.wait_s, lambda: rung.resolve(None))
        try:
            await rung
        finally:
            if waited is not None:
                waited()
        return await self._obey(call, begin, answer)

    def _composed(self, call: Call, answered: Answered, orders: Orders) -> Awaitable[Reply]:
        """Deliver an answer, with the fault that a rule of answers put into it."""
        if answered.fault is None or orders.fault is not None:
            return self._later(call, answered, orders)
        begin = beginning(Orders(fault=answered.fault), streamed=call.stream)
        begin = in_time(begin, self._left_s(call))
        return self._obeying(call, begin, lambda call, left: self._later(call, answered, left))

    def _left_s(self, call: Call) -> float:
        """Seconds that a call may still take."""
        return max(call.upstream_at + self._most_s - self._env.clock(), 0.0)

    def _key(self, call: Call, orders: Orders) -> bytes:
        return self._provider.key(call.model, call.body, orders.key)

    def _answer(self, call: Call, orders: Orders) -> Awaitable[Reply]:
        """Answer; what is still ordered happens within it."""
        if self._replay is not None:
            played = self._replay.find(call)
            if played is not None:
                return self._later(call, played, orders)
        if call.dialect in _EMBEDS:
            return asyncio.get_running_loop().create_task(self._embed(call, orders))
        spoken = codec(call.dialect)
        if call.dialect in _COUNTS:
            counted = self._provider.count(spoken, call.dialect, call.body)
            return self._later(call, counted, orders)
        salt = partial(self._draws.text, call)
        steps = self._provider.generate(
            spoken, call.dialect, call.body, orders.key, orders.drawn, salt
        )
        try:
            for _ in range(STEPS_AT_ONCE):
                next(steps)
        except StopIteration as done:
            return self._composed(call, done.value, orders)
        except RefusalOrdered as refused:
            raise refusal(refused.order, call, self._allowance) from None
        return asyncio.get_running_loop().create_task(self._slowly(call, steps, orders))

    @property
    def carried(self) -> frozenset[bytes]:
        """Request headers that its rules ask about."""
        return self._trouble.carried | {RANK.encode()} if self._ranked else self._trouble.carried

    async def list_models(self) -> Sequence[str]:
        """The literal names it was configured with."""
        return self._models

    def close(self) -> None:
        """Nothing is held but a share of the worker's timer and engines."""
        self._engines.close()
        self._timer.close()

    async def _slowly(
        self, call: Call, steps: Generator[None, None, Answered], orders: Orders
    ) -> Reply:
        """Many choices, with room for other calls between them."""
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as done:
                return await self._composed(call, done.value, orders)

    async def _embed(self, call: Call, orders: Orders) -> Reply:
        answered = await self._provider.embed(call.dialect, call.body)
        return await self._later(call, answered, orders)

    def _later(self, call: Call, answered: Answered, orders: Orders) -> Awaitable[Reply]:
        """The reply within the caller's limits: now, or when it is its turn."""
        standing, limits = self._charged(call, answered), self._limits
        if standing is None or limits is None or not standing.wait_s:
            return self._timed(call, answered, orders, standing)
        left = replace(orders, delay_s=orders.delay_s + standing.wait_s)
        begin = in_time(Beginning(standing.wait_s, None, left), self._left_s(call))

        async def answer(call: Call, left: Orders) -> Reply:
            return await self._timed(call, answered, left, standing)

        return self._obeying(call, begin, answer, partial(limits.leave, call))

    def _charged(self, call: Call, answered: Answered) -> Standing | None:
        """Where the caller stands with this answer; raises the 429 of a limit or a quota."""
        used, charged = answered.usage, []
        if self._quotas is not None:
            charged = self._quotas.charge(call, used.prompt + max(used.completion, 0))
        if self._limits is None:
            return None
        chance = partial(self._draws.chance, call, answered.key)
        try:
            return self._limits.charge(call, used.prompt, used.completion, chance)
        except TpoError:
            if self._quotas is not None:
                self._quotas.give_back(charged)
            raise

    def _timed(
        self, call: Call, answered: Answered, orders: Orders, standing: Standing | None
    ) -> Promise[Reply]:
        """The reply when its time has come: with its first token, or whole with its last."""
        used, fault = answered.usage, orders.fault
        if not self._trouble.quiet:
            self._trouble.spend(used.prompt + max(used.completion, 0))
        under_way = _UnderWay(call, self._allowance)
        said = under_way.said
        refused = None if answered.recording is None else error_of(answered.recording)
        pace = self._pace(call, answered, orders, under_way)
        if pace is AT_ONCE and refused is None and not call.stream:
            # Nobody waits, so there is nothing to count down or to cancel.
            said.resolve(self._reply(call, answered, None, fault, standing))
            return said
        sizes = pace.chunks if isinstance(pace, SchedulePace) else None
        if pace is not AT_ONCE and answered.recording is None:
            ends_at = call.upstream_at + self._most_s
            pace = limited(pace, self._timer, ends_at, under_way.too_late)
        stream: SimulatedStream | None = None
        if call.stream and refused is None:
            frames = answered.frames(call.usage_wanted, sizes)
            under_way.frames = frames
            stall = None
            if fault is not None:
                frames = struck(frames, fault)
                stall = fault if fault.kind == "stall" else None
            stream = under_way.stream = SimulatedStream(frames, pace, stall, self._later_on)
            wait, cancel = stream.start, stream.cancel
        else:
            whole = WholeAnswer(pace, used.completion - answered.hidden)
            wait, cancel = whole.start, whole.cancel

            async def shorten(shown: int, spent: int) -> Reply:
                spoken = codec(call.dialect)
                steps = self._provider.broken_off(answered, spoken, call.dialect, shown, spent)
                return self._reply(call, await in_turns(steps), None, fault, standing)

            under_way.shorten = shorten
        said.cancel_with = cancel

        def settle() -> None:
            if refused is not None:
                said.reject(refused)
            else:
                said.resolve(under_way.told(self._reply(call, answered, stream, fault, standing)))

        wait(settle)
        return said

    def _pace(self, call: Call, answered: Answered, orders: Orders, under_way: _UnderWay) -> Pace:
        if self._replay is not None and answered.recording is not None:
            return self._replay.pace(call, answered.recording, orders.delay_s)
        timing = self._timing_of(call.model)
        if timing is None:
            return AT_ONCE
        usage = answered.usage
        return timing.pace(
            Asked(
                call,
                self._draws.chance(call, answered.key),
                call.upstream_at + orders.delay_s,
                usage.prompt,
                usage.completion - answered.hidden,
                answered.hidden,
                self._latency.factor * self._trouble.slowdown(),
                answered,
                under_way.refuse,
                under_way.break_off,
                self.adapters.get(call.model),
                rank_of(call.forward) if self._ranked else -1,
            )
        )

    def _timing_of(self, model: str) -> Timing | None:
        """The timing of a model, or of the one that an adapter of this name is for."""
        adapter = self.adapters.get(model) if self._adapts else None
        return self._latency.timing_of(model if adapter is None else adapter.base)

    def _reply(
        self,
        call: Call,
        answered: Answered,
        stream: SimulatedStream | None,
        fault: FaultOrder | None,
        standing: Standing | None,
    ) -> Reply:
        usage = answered.usage
        headers = self._lines(call, usage, standing)
        if stream is not None:
            written = stream if fault is None else written_with(stream, fault, self._alarm)
            reply = Reply(200, None, stream=written, content_type=SSE, headers=headers)
        else:
            body = answered.body()
            reply = Reply(200, body if fault is None else spoilt(body, fault), headers=headers)
        reply.backend = self.name
        reply.usage, reply.finish_reason = usage, answered.finish_reason
        return reply

    def _lines(self, call: Call, usage: Usage, standing: Standing | None) -> bytes:
        """The header lines of a reply that begins now."""
        now = self._env.clock()
        call.first_byte_at = now
        took_ms = (now - call.upstream_at) * 1e3
        if standing is not None:
            lines = standing.lines(call.dialect, took_ms)
        else:
            lines = self._allowance.lines(call.dialect, usage.prompt, usage.completion, took_ms)
        if self._prices is not None:
            lines += cost_line(self._prices, self._env.prices, call, usage)
        return lines

    def _alarm(self, seconds: float, then: Callable[[], None]) -> Callable[[], None]:
        return Alarm.set(self._timer, self._env.clock() + seconds, then)


class _UnderWay:
    """An answer that is waited for, and how it ends early; thousands wait at a time."""

    __slots__ = ("_allowance", "_call", "frames", "said", "shorten", "spent", "stream")

    def __init__(self, call: Call, allowance: Allowance) -> None:
        self._call = call
        self._allowance = allowance
        self.said: Promise[Reply] = Promise()
        self.stream: SimulatedStream | None = None
        self.frames: Iterator[Frame] | None = None
        """Those of the stream, before any fault is put into them."""
        self.shorten: Callable[[int, int], Coroutine[Any, Any, Reply]] | None = None
        """The whole reply with only so many tokens shown, and so many counted."""
        self.spent = -1
        """Tokens computed of an answer that was broken off."""

    def refuse(self, status: int) -> None:
        """End it as a provider does that cannot go on."""
        self._end(ErrorOrder(status))

    def too_late(self) -> None:
        """It takes longer than an answer may."""
        self._end(TOO_LATE)

    def break_off(self, shown: int, spent: int) -> None:
        """End it as vLLM ends what it aborts: with what is said so far, and that as the reason."""
        stream, frames = self.stream, self.frames
        if stream is not None and isinstance(frames, RenderedFrames):
            self.spent = spent
            if self.said.value is not None:
                self.told(self.said.value)
            stream.break_off(lambda left: frames.break_off(left, spent))
        elif self.shorten is not None and not self.said.done:
            if self.said.cancel_with is not None:
                self.said.cancel_with()
            shorten, self.shorten = self.shorten, None
            self.said.cancel_with = run(shorten(shown, spent), self._shortened)

    def _shortened(self, reply: Reply, error: BaseException | None) -> None:
        self.said.resolve(reply) if error is None else self.said.reject(error)

    def told(self, reply: Reply) -> Reply:
        """The reply of a stream, told if it was broken off."""
        if self.spent >= 0 and reply.usage is not None:
            reply.usage = Usage(reply.usage.prompt, self.spent)
            reply.finish_reason = "abort"
        return reply

    def _end(self, order: ErrorOrder) -> None:
        error = refusal(order, self._call, self._allowance)
        if not self.said.done:
            if self.said.cancel_with is not None:
                self.said.cancel_with()
            self.said.reject(error)
        elif self.stream is not None:
            self.stream.fail(error)


def living(config: Config, env: Env) -> LivingBackend[Config]:
    """The backend as it is told to be from moment to moment."""
    return LivingBackend(config, env, SimulatorBackend)


FEATURE = Feature(Config, living)
