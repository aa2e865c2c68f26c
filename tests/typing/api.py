"""What an outside author may rely on: the library, and doors that take features written like this.

Type-checked only, by pyright and mypy; nothing runs it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

import tpo_mp
from tpo_mp.errors import BackendRefused, ExitCode, TpoError
from tpo_mp.ports import (
    Backend,
    BackendConfig,
    Controller,
    Env,
    Feature,
    Proceed,
    Route,
    Stage,
)
from tpo_mp.types import Call, Phase, Reply, Sink, Stream


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a stage."""

    limit: int = 3


class Counted:
    """A stage that may wait."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Options, env: Env) -> None:
        self._limit = config.limit
        self._calls = env.metrics.counter("calls_total", "Calls seen.", stage="counted")

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply:
        self._calls.inc()
        return await proceed(call)


class First:
    """A route that asks one backend after another."""

    def __init__(self, config: Options, env: Env) -> None:
        self._config = config

    async def __call__(self, call: Call, backends: Sequence[Backend], /) -> Reply:
        for backend in backends:
            try:
                return await backend.infer(call)
            except BackendRefused:
                continue
        raise TpoError("nobody answers")


class Words(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend."""

    greeting: str = "hello"


class Greeting:
    """A backend that needs no network."""

    def __init__(self, config: Words, env: Env) -> None:
        self.name = config.name
        self._body = config.greeting.encode()

    def infer(self, call: Call, /) -> Awaitable[Reply]:
        return self._infer(call)

    async def _infer(self, call: Call) -> Reply:
        return Reply(200, self._body)

    async def list_models(self) -> Sequence[str]:
        return ["greeting"]

    def close(self) -> None:
        return None


class Calm:
    """A controller that wants nothing."""

    def decide(self, snapshot: Mapping[str, float], /) -> Sequence[tuple[str, float]]:
        return [("pool", snapshot["load"])] if snapshot else []


class Once:
    """A stream of one chunk."""

    def attach(self, sink: Sink) -> None:
        sink.data(b"data: [DONE]\n\n")
        sink.end(None)

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None

    def cancel(self) -> None:
        return None


def fits(env: Env) -> tuple[Stage, Route, Backend, Controller, Stream]:
    """Each of them stands behind its door."""
    words = Words(name="words", kind="greeting")
    options = Options(limit=1)
    return Counted(options, env), First(options, env), Greeting(words, env), Calm(), Once()


class Parrot:
    """The least a backend of one's own needs."""

    async def infer(self, call: Call, /) -> str:
        return call.model


async def in_process() -> tuple[str, int, list[str]]:
    """The chain as a library, from a kind, an object, a file and tables."""
    async with tpo_mp.spawn_pipeline("echo") as pipeline:
        reply = await pipeline.infer("three little words", session="s", temperature=0)
        pieces = [piece async for piece in pipeline.stream([{"role": "user", "content": "hi"}])]
        answer = await pipeline.chat({"model": "echo", "messages": []})
        assert isinstance(answer["choices"], list)
    async with tpo_mp.spawn_pipeline(Parrot(), {"pipeline": {"stages": []}}, model="m") as own:
        names = await own.models()
    async with tpo_mp.spawn_pipeline(Path("tpo.toml")):
        status: int = reply.status
    return "".join([reply.text, *pieces]), status, names


FEATURE = Feature(Options, Counted)
CODE: int = ExitCode.CRASH_LOOP
