"""Answers with the caller's own words: no upstream, no model, for first steps and tests.

Streams send one event per word.
Weakness: token counts are word counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import monotonic, time
from typing import Annotated

from msgspec import Meta

from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig, Env, Feature, Timers
from tpo_mp.types import Call, Reply, Sink, Usage


class Config(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the echo backend."""

    models: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Model names or globs this backend serves.")
    ] = ("echo",)
    delay_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="Wait before a reply and between streamed words.")
    ] = 0.0


class EchoBackend:
    """The backend of kind ``echo``."""

    def __init__(self, config: Config, env: Env) -> None:
        self.name = config.name
        self._models = [m for m in config.models if "*" not in m]
        self._delay_s = config.delay_ms / 1000
        self._env = env

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Reply with the newest user message."""
        words = dialect.last_user_text(call.body).split()
        said: Promise[Reply] = Promise()
        usage = Usage(len(words), len(words))
        call.upstream_at = self._env.clock()
        if call.stream:
            reply = Reply(
                200,
                None,
                stream=_Words(call, words, usage, self._env.timers, self._delay_s),
                content_type=b"text/event-stream; charset=utf-8",
                backend=self.name,
            )
        else:
            body = dialect.completion(
                f"chatcmpl-{call.id}", int(time()), call.model, " ".join(words), usage
            )
            reply = Reply(200, body, backend=self.name)
        reply.usage, reply.finish_reason = usage, "stop"
        if self._delay_s:
            pause = _Pause(call, said, reply, self._env)
            pause.file(self._delay_s)
            said.cancel_with = pause.stop
        else:
            call.first_byte_at = call.upstream_at
            said.resolve(reply)
        return said

    async def list_models(self) -> Sequence[str]:
        """The literal names it was configured with."""
        return self._models

    def close(self) -> None:
        """Nothing is held."""


class _Pause:
    """Resolves a promise when its time has come."""

    __slots__ = ("_call", "_env", "_reply", "_said", "deadline", "filed_at")

    def __init__(self, call: Call, said: Promise[Reply], reply: Reply, env: Env) -> None:
        self._call = call
        self._env = env
        self._said = said
        self._reply = reply
        self.deadline = float("inf")
        self.filed_at = 0.0

    def file(self, delay_s: float) -> None:
        now = self._env.clock()
        self.deadline = now + delay_s
        self._env.timers.add(self, now)

    def stop(self) -> None:
        self.deadline = float("inf")

    def expire(self) -> None:
        self._call.first_byte_at = self._env.clock()
        self._said.resolve(self._reply)


class _Words:
    """A stream of one event per word; with a delay, one per tick of the timer."""

    __slots__ = (
        "_at",
        "_delay_s",
        "_events",
        "_paused",
        "_sink",
        "_timers",
        "deadline",
        "filed_at",
    )

    def __init__(
        self, call: Call, words: list[str], usage: Usage, timers: Timers, delay_s: float
    ) -> None:
        reply_id, created = f"chatcmpl-{call.id}", int(time())
        chunk, event = dialect.chunk, dialect.event
        self._events = [
            event(chunk(reply_id, created, call.model, {"role": "assistant", "content": ""}))
        ]
        for i, word in enumerate(words):
            text = word if i == len(words) - 1 else word + " "
            self._events.append(event(chunk(reply_id, created, call.model, {"content": text})))
        self._events.append(event(chunk(reply_id, created, call.model, {}, "stop")))
        if call.usage_wanted:
            self._events.append(event(dialect.usage_chunk(reply_id, created, call.model, usage)))
        self._events.append(dialect.DONE)
        self._at = 0
        self._sink: Sink | None = None
        self._paused = False
        self._timers = timers
        self._delay_s = delay_s
        self.deadline = float("inf")
        self.filed_at = 0.0

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._go()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._sink is not None and self.deadline == float("inf"):
            self._go()

    def cancel(self) -> None:
        self._sink = None
        self.deadline = float("inf")

    def expire(self) -> None:
        self._go()

    def _go(self) -> None:
        while not self._paused:
            sink = self._sink
            if sink is None:
                return
            if self._at == len(self._events):
                self._sink = None
                sink.end(None)
                return
            self._at += 1
            sink.data(self._events[self._at - 1])
            if self._delay_s and self._at < len(self._events):
                now = monotonic()
                self.deadline = now + self._delay_s
                self._timers.add(self, now)
                return


FEATURE = Feature(Config, EchoBackend)
