"""A simulated provider: every dialect first hand, the same answers, errors and faults to order.

The same backend is a gateway's (``kind = "simulator"``) and the whole of ``tpo-mp simulate``.
``tpo_mp.simulator`` makes the answers; here they become replies.
What a request may order by header is listed in ``tpo_mp.simulator.orders``.
When its tokens come is told by the timing of the call's model, see ``tpo_mp.simulator.timing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from tpo_mp.config.values import Secret
from tpo_mp.errors import ConfigError
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.call_journal import CallJournal, JournalOptions
from tpo_mp.simulator.catalog import MODELS
from tpo_mp.simulator.engine_timing import Engines
from tpo_mp.simulator.failures import refusal
from tpo_mp.simulator.keys import KnownKeys
from tpo_mp.simulator.latency import LatencyOptions, latency_of, lengths_of
from tpo_mp.simulator.limits import Allowance, Standing
from tpo_mp.simulator.live import NOTHING_TOLD, LiveState
from tpo_mp.simulator.living import LivingBackend
from tpo_mp.simulator.orders import STALL_S, ErrorOrder, FaultOrder, Orders, orders_of
from tpo_mp.simulator.pacing import Alarm, SchedulePace
from tpo_mp.simulator.provider import Answered, RefusalOrdered, SimulatedProvider
from tpo_mp.simulator.rate_limits import EXCEEDED, LimitOptions, RateLimits
from tpo_mp.simulator.rules import MOST_RULES, AnswerRule, RuleBook
from tpo_mp.simulator.rules import problems as rule_problems
from tpo_mp.simulator.source import SimulatedStream, WholeAnswer, broken, cut
from tpo_mp.simulator.texts import Strategy
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import AT_ONCE, Asked, Pace
from tpo_mp.types import Call, Dialect, Reply

SSE = b"text/event-stream; charset=utf-8"
_EMBEDS = (Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS)
_COUNTS = (Dialect.ANTHROPIC_COUNT, Dialect.GEMINI_COUNT)
STEPS_AT_ONCE = 3
"""Choices made without a pause: two, and the end."""


class Config(LatencyOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a simulated provider."""

    models: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Model names or globs it serves.")
    ] = MODELS
    seed: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="Another seed, other answers; same seed, same.")
    ] = 0
    strategy: Annotated[
        Strategy,
        Meta(
            description="What it says: sentences about the prompt, Latin, the prompt itself, "
            "`text`, or invented words."
        ),
    ] = "template"
    text: Annotated[
        str, Meta(max_length=1 << 20, description="What the strategy `fixed` says.")
    ] = "Hello from the simulator."
    min_tokens: Annotated[
        int, Meta(ge=1, le=8192, description="Shortest answer it makes up, in tokens.")
    ] = 10
    max_tokens: Annotated[
        int, Meta(ge=1, le=8192, description="Longest answer it makes up, in tokens.")
    ] = 500
    rules: Annotated[
        tuple[AnswerRule, ...],
        Meta(max_length=MOST_RULES, description="Answers for requests of a kind, first match."),
    ] = ()
    strict: Annotated[
        bool, Meta(description="Refuse generation requests that no rule matches.")
    ] = False
    requests_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000, description="Limit that rate limit headers name.")
    ] = 10_000
    tokens_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000_000, description="Limit that rate limit headers name.")
    ] = 2_000_000

    limits: Annotated[
        LimitOptions, Meta(description="Whether the limits of these two run out.")
    ] = LimitOptions()
    journal: Annotated[JournalOptions, Meta(description="What is written down of requests.")] = (
        JournalOptions()
    )
    api_keys: Annotated[
        tuple[Secret, ...], Meta(description="Keys it knows, any other is 401; none: any passes.")
    ] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Bounds the wrong way round, and timings nobody offers."""
        if self.min_tokens > self.max_tokens:
            yield "min_tokens", "over max_tokens"
        yield from super().problems()
        yield from rule_problems(self.rules)


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
        self._models = [m for m in config.models if not set(m) & set("*?[")]
        self._timer = timer_of(env)
        self._engines = Engines(config.name, config.engines, env, self._timer)
        self._latency = latency_of(config, env, self._timer, self._engines.offer)
        self._allowance = Allowance(config.requests_per_minute, config.tokens_per_minute)
        self._keys = KnownKeys(config.api_keys) if config.api_keys else None
        self.journal: CallJournal | None = None
        if config.journal.enabled:
            self.journal = CallJournal(config.journal, env.journal, env.clock)
        self._limits: RateLimits | None = None
        if config.limits.enforce:
            self._limits = RateLimits(
                config.name, config.limits, self._allowance, ledger=env.ledger, clock=env.clock,
                epoch=state.limits_epoch,
                exceeded=env.metrics.counter(EXCEEDED, "Requests over a simulated rate limit."),
            )  # fmt: skip
        self._provider = SimulatedProvider(
            Speech(
                seed=config.seed,
                strategy=config.strategy,
                text=config.text,
                least_tokens=config.min_tokens,
                most_tokens=config.max_tokens,
                lengths=lengths_of(config, self._latency),
            ),
            RuleBook(config.rules, config.strict, env.ledger)
            if config.rules or config.strict
            else None,
        )

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer, refuse or fail as the request and its orders say."""
        call.upstream_at = self._env.clock()
        if self._keys is not None and not self._keys.knows(call.authorization):
            raise refusal(ErrorOrder(401), call, self._allowance)
        orders = orders_of(call.forward)
        if orders.error is not None:
            raise refusal(orders.error, call, self._allowance)
        if call.dialect in _EMBEDS:
            return asyncio.get_running_loop().create_task(self._embed(call, orders))
        spoken = codec(call.dialect)
        if call.dialect in _COUNTS:
            counted = self._provider.count(spoken, call.dialect, call.body)
            return self._later(call, counted, orders.fault)
        steps = self._provider.generate(spoken, call.dialect, call.body, orders.key)
        try:
            for _ in range(STEPS_AT_ONCE):
                next(steps)
        except StopIteration as done:
            answered: Answered = done.value
            return self._later(call, answered, orders.fault or answered.fault)
        except RefusalOrdered as refused:
            raise refusal(refused.order, call, self._allowance) from None
        return asyncio.get_running_loop().create_task(self._slowly(call, steps, orders))

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
                answered: Answered = done.value
                return await self._later(call, answered, orders.fault or answered.fault)

    async def _embed(self, call: Call, orders: Orders) -> Reply:
        answered = await self._provider.embed(call.dialect, call.body)
        return await self._later(call, answered, orders.fault)

    def _later(self, call: Call, answered: Answered, fault: FaultOrder | None) -> Promise[Reply]:
        """The reply when its time has come: with its first token, or whole with its last."""
        used, standing = answered.usage, None
        if self._limits is not None:
            standing = self._limits.charge(call, used.prompt, used.completion)
        said: Promise[Reply] = Promise()
        pace = self._pace(call, answered, lambda status: refuse(status))  # noqa: PLW0108 - not yet
        stalls_s = 0.0
        if fault is not None and fault.kind == "stall" and not fault.after:
            stalls_s = STALL_S if fault.lasts_s is None else fault.lasts_s
            fault = None if fault.lasts_s is not None else FaultOrder("disconnect")
        if call.stream:
            sizes = pace.chunks if isinstance(pace, SchedulePace) else None
            frames = answered.frames(call.usage_wanted, sizes)
            stream = SimulatedStream(frames, pace, fault, self._alarm)
            wait, cancel = stream.start, stream.cancel
        else:
            stream = None
            whole = WholeAnswer(pace, answered.usage.completion - answered.hidden)
            wait, cancel = whole.start, whole.cancel
        said.cancel_with = cancel

        def settle() -> None:
            if fault is not None and fault.kind == "disconnect" and not (stream and fault.after):
                cancel()
                said.reject(cut())
            else:
                said.resolve(self._reply(call, answered, stream, fault, standing))

        def refuse(status: int) -> None:
            error = refusal(ErrorOrder(status), call, self._allowance)
            if said.done and stream is not None:
                stream.fail(error)
            else:
                cancel()
                said.reject(error)

        if stalls_s:
            wait(lambda: self._stall(said, cancel, stalls_s, settle))
        else:
            wait(settle)
        return said

    def _pace(self, call: Call, answered: Answered, refuse: Callable[[int], None]) -> Pace:
        timing = self._latency.timing_of(call.model)
        if timing is None or call.dialect in _COUNTS:
            return AT_ONCE
        usage = answered.usage
        return timing.pace(
            Asked(
                call,
                answered.key,
                call.upstream_at,
                usage.prompt,
                usage.completion - answered.hidden,
                answered.hidden,
                self._latency.factor,
                answered,
                refuse,
            )
        )

    def _stall(
        self,
        said: Promise[Reply],
        cancel: Callable[[], None],
        lasts_s: float,
        settle: Callable[[], None],
    ) -> None:
        """Be silent before the first byte."""
        ring = self._alarm(lasts_s, settle)

        def give_up() -> None:
            ring()
            cancel()

        said.cancel_with = give_up

    def _reply(
        self,
        call: Call,
        answered: Answered,
        stream: SimulatedStream | None,
        fault: FaultOrder | None,
        standing: Standing | None,
    ) -> Reply:
        now = self._env.clock()
        call.first_byte_at = now
        usage = answered.usage
        took_ms = (now - call.upstream_at) * 1e3
        if standing is not None:
            headers = standing.lines(call.dialect, took_ms)
        else:
            headers = self._allowance.lines(call.dialect, usage.prompt, usage.completion, took_ms)
        if stream is not None:
            reply = Reply(200, None, stream=stream, content_type=SSE, headers=headers)
        else:
            body = answered.body()
            if fault is not None and fault.kind == "malformed":
                body = broken(body)
            reply = Reply(200, body, headers=headers)
        reply.backend = self.name
        reply.usage, reply.finish_reason = usage, answered.finish_reason
        return reply

    def _alarm(self, seconds: float, then: Callable[[], None]) -> Callable[[], None]:
        return Alarm.set(self._timer, self._env.clock() + seconds, then)


def living(config: Config, env: Env) -> LivingBackend[Config]:
    """The backend as it is told to be from moment to moment."""
    return LivingBackend(config, env, SimulatorBackend)


FEATURE = Feature(Config, living)
