"""A simulated provider: every dialect first hand, the same answers, errors and faults to order.

The same backend is a gateway's (``kind = "simulator"``) and the whole of ``tpo-mp simulate``.
``tpo_mp.simulator`` makes the answers; here they become replies.
What a request may order by header is listed in ``tpo_mp.simulator.orders``.

Known weakness: time passes in the steps of the shard's timer wheel, see ``simulator.pacing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Annotated

from msgspec import Meta

from tpo_mp.errors import ConfigError
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig, Env, Feature
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.catalog import MODELS
from tpo_mp.simulator.failures import refusal
from tpo_mp.simulator.limits import Allowance
from tpo_mp.simulator.orders import STALL_S, FaultOrder, Orders, orders_of
from tpo_mp.simulator.pacing import Alarm, FixedPace
from tpo_mp.simulator.provider import Answered, SimulatedProvider
from tpo_mp.simulator.source import AtOnce, SimulatedStream, broken, cut
from tpo_mp.simulator.texts import Strategy
from tpo_mp.types import Call, Dialect, Reply

SSE = b"text/event-stream; charset=utf-8"
AT_ONCE = 3
"""Choices made without a pause: two, and the end."""


class Config(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    first_token_ms: Annotated[
        float, Meta(ge=0, le=600_000, description="Wait before the first token.")
    ] = 0.0
    token_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="Wait for each further token.")
    ] = 0.0
    requests_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000, description="Limit that rate limit headers name.")
    ] = 10_000
    tokens_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000_000, description="Limit that rate limit headers name.")
    ] = 2_000_000


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
    )

    def __init__(self, config: Config, env: Env) -> None:
        if config.min_tokens > config.max_tokens:
            said = f"backends.{config.name}.min_tokens: over max_tokens"
            raise ConfigError(said)
        self.name = config.name
        self._env = env
        self._models = [m for m in config.models if not set(m) & set("*?[")]
        self._first_s = config.first_token_ms / 1e3
        self._gap_s = config.token_ms / 1e3
        self._allowance = Allowance(config.requests_per_minute, config.tokens_per_minute)
        self._provider = SimulatedProvider(
            Speech(
                seed=config.seed,
                strategy=config.strategy,
                text=config.text,
                least_tokens=config.min_tokens,
                most_tokens=config.max_tokens,
            )
        )

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer, refuse or fail as the request and its orders say."""
        call.upstream_at = self._env.clock()
        orders = orders_of(call.forward)
        if orders.error is not None:
            raise refusal(orders.error, call, self._allowance)
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            return asyncio.get_running_loop().create_task(self._embed(call, orders))
        spoken = codec(call.dialect)
        if call.dialect is Dialect.ANTHROPIC_COUNT:
            counted = self._provider.count(spoken, call.body)
            return self._later(call, counted, orders.fault)
        steps = self._provider.generate(spoken, call.dialect, call.body, orders.key)
        try:
            for _ in range(AT_ONCE):
                next(steps)
        except StopIteration as done:
            return self._later(call, done.value, orders.fault)
        return asyncio.get_running_loop().create_task(self._slowly(call, steps, orders))

    async def list_models(self) -> Sequence[str]:
        """The literal names it was configured with."""
        return self._models

    def close(self) -> None:
        """Nothing is held."""

    async def _slowly(
        self, call: Call, steps: Generator[None, None, Answered], orders: Orders
    ) -> Reply:
        """Many choices, with room for other calls between them."""
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as done:
                return await self._later(call, done.value, orders.fault)

    async def _embed(self, call: Call, orders: Orders) -> Reply:
        answered = await self._provider.embed(call.body)
        return await self._later(call, answered, orders.fault)

    def _later(self, call: Call, answered: Answered, fault: FaultOrder | None) -> Promise[Reply]:
        """The reply when its time has come."""
        said: Promise[Reply] = Promise()
        wait_s = self._first_s
        if not call.stream:
            wait_s += max(answered.usage.completion - 1, 0) * self._gap_s
        if fault is not None and not fault.after and fault.kind == "stall":
            wait_s += STALL_S if fault.lasts_s is None else fault.lasts_s
            fault = None if fault.lasts_s is not None else FaultOrder("disconnect")
        if wait_s <= 0:
            self._settle(said, call, answered, fault)
            return said
        said.cancel_with = self._alarm(wait_s, lambda: self._settle(said, call, answered, fault))
        return said

    def _settle(
        self, said: Promise[Reply], call: Call, answered: Answered, fault: FaultOrder | None
    ) -> None:
        """Answer now, or cut the connection before a byte."""
        if fault is not None and fault.kind == "disconnect" and not (call.stream and fault.after):
            said.reject(cut())
            return
        said.resolve(self._reply(call, answered, fault))

    def _reply(self, call: Call, answered: Answered, fault: FaultOrder | None) -> Reply:
        now = self._env.clock()
        call.first_byte_at = now
        usage = answered.usage
        headers = self._allowance.lines(
            call.dialect, usage.prompt, usage.completion, (now - call.upstream_at) * 1e3
        )
        if call.stream:
            pace = FixedPace(self._env, self._gap_s) if self._gap_s else AtOnce()
            stream = SimulatedStream(answered.frames(call.usage_wanted), pace, fault, self._alarm)
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
        return Alarm.set(self._env, seconds, then)


FEATURE = Feature(Config, SimulatorBackend)
