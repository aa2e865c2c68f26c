"""A package from outside the house: one feature behind each door that a config can name.

``install`` writes what a package manager would, so that a gateway started with that ``PYTHONPATH``
finds these features by their entry points.
Each stage leaves its name in ``call.forward`` on the way in and in the reply's headers on the way
out; the backend answers with the trail it was asked by.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time
from typing import Annotated, Any, ClassVar

import orjson
from msgspec import Meta, Struct

from tpo_mp.dialects import openai_chat
from tpo_mp.errors import Shed
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.exchange import Exchange
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.taps import Tapped, tap
from tpo_mp.ports import BackendConfig, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply, Sink, Tap, Usage

from .wait import until

TRAIL = ("admit", "rag", "stream", "post_process", "assemble", "inference", "attempt")
STAGES = tuple(f"outside_{phase}" for phase in TRAIL)


class NoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


def _came_in(call: Call, name: str) -> None:
    call.forward += b"x-in: %b\r\n" % name.encode()


def _went_out(reply: Reply, name: str) -> None:
    reply.headers += b"x-out: %b\r\n" % name.encode()


class _InLine:
    """A stage that never waits."""

    phase: ClassVar[Phase]

    def __init__(self, config: object, env: Env) -> None:
        self.name = self.phase.name.lower()

    def before(self, call: Call) -> None:
        """Leave a mark."""
        _came_in(call, self.name)

    def after(self, call: Call, reply: Reply) -> None:
        """Leave another."""
        _went_out(reply, self.name)


class _Waits:
    """A stage that may wait, and does."""

    phase: ClassVar[Phase]

    def __init__(self, config: object, env: Env) -> None:
        self.name = self.phase.name.lower()

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply:
        await asyncio.sleep(0)
        _came_in(call, self.name)
        reply = await proceed(call)
        _went_out(reply, self.name)
        return reply


GATE = "XDG_OUTSIDE_GATE"
"""One of the few variables that workers are given."""


class RagConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the retrieval that retrieves nothing."""

    hold_s: Annotated[float, Meta(ge=0, le=60, description="How long it waits.")] = 0.0


class OutsideAdmit(_InLine):
    """Runs on the shard that took the call."""

    phase = Phase.ADMIT


class OutsideRag(_Waits):
    """Waits in its waiting room, which may be full, while the file ``GATE`` names is there."""

    phase = Phase.RAG

    def __init__(self, config: RagConfig, env: Env) -> None:
        super().__init__(config, env)
        self._hold_s = config.hold_s
        self._gate = os.environ.get(GATE, "")
        self._room = env.rooms["rag"]

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply:
        if not self._room.enter():
            raise Shed("too many calls wait for retrieval", reason="backpressure", stage="rag")
        try:
            await asyncio.sleep(self._hold_s)
            if self._gate:
                gate = Path(self._gate)
                await until(lambda: not gate.exists(), 60, "the gate to be opened", every_s=0.02)
        finally:
            self._room.leave()
        return await super().__call__(call, proceed)


class OutsideStream(_InLine):
    """Taps frames."""

    phase = Phase.STREAM

    def __init__(self, config: object, env: Env) -> None:
        super().__init__(config, env)
        self._frames = env.metrics.counter("outside_frames_total", "Frames seen.")

    def after(self, call: Call, reply: Reply) -> None:
        """Count them."""
        super().after(call, reply)
        tap(call, reply, Tap.FRAMES, lambda seen: self._frames.inc(seen.frames))


class OutsidePostProcess(_InLine):
    """Taps bytes and text."""

    phase = Phase.POST_PROCESS

    def __init__(self, config: object, env: Env) -> None:
        super().__init__(config, env)
        self._bytes = env.metrics.counter("outside_bytes_total", "Bytes seen.")
        self._letters = env.metrics.counter("outside_letters_total", "Letters of text seen.")

    def after(self, call: Call, reply: Reply) -> None:
        """Count them."""
        super().after(call, reply)
        tap(call, reply, Tap.BYTES, self._copied)
        tap(call, reply, Tap.TEXT, lambda seen: self._letters.inc(len(seen.text)))

    def _copied(self, seen: Tapped) -> None:
        self._bytes.inc(len(seen.body or b""))


class OutsideAssemble(_InLine):
    """The innermost but the inference."""

    phase = Phase.ASSEMBLE


class OutsideInference(_Waits):
    """Wraps the route."""

    phase = Phase.INFERENCE


class OutsideAttempt(_InLine):
    """Wraps each try."""

    phase = Phase.ATTEMPT


class ParrotConfig(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the parrot."""

    prefix: Annotated[str, Meta(max_length=64, description="Said first.")] = ""


class Parrot:
    """Answers with the trail of the call, as a coroutine does it."""

    def __init__(self, config: ParrotConfig, env: Env) -> None:
        self.name = config.name
        self._prefix = config.prefix

    async def infer(self, call: Call) -> Reply:
        """Say where the call has been."""
        await asyncio.sleep(0)
        names = [line.partition(b": ")[2] for line in call.forward.splitlines()]
        text = self._prefix + b" ".join(names).decode()
        if call.stream:
            return Reply(200, None, stream=_Said(text), content_type=b"text/event-stream")
        return Reply(200, openai_chat.completion("p", int(time()), call.model, text, Usage(1, 1)))

    async def list_models(self) -> Sequence[str]:
        """None that it knows of."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


class _Said:
    """A stream of one event per word."""

    def __init__(self, text: str) -> None:
        self._words = [f"{word} " for word in text.split()]

    def attach(self, sink: Sink) -> None:
        """Say it all at once."""
        for word in self._words:
            sink.data(openai_chat.event(openai_chat.chunk("p", 1, "m", {"content": word})))
        sink.data(openai_chat.event(openai_chat.chunk("p", 1, "m", {}, "stop")))
        sink.data(openai_chat.DONE)
        sink.end(None)

    def pause(self) -> None:
        """It is over already."""

    def resume(self) -> None:
        """It is over already."""

    def cancel(self) -> None:
        """It is over already."""


class LastBackend:
    """A route that takes the last one."""

    def __init__(self, config: object, env: Env) -> None: ...

    def pick(self, call: Call, backends: Sequence[Any]) -> Any:
        """The last."""
        return backends[-1]


class HelloConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the greeting."""

    greeting: Annotated[str, Meta(min_length=1, description="Said to everybody.")] = "hello"


class Hello:
    """A surface of one route."""

    def __init__(self, config: HelloConfig, env: Env) -> None:
        self._greeting = config.greeting

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """Its route."""
        self._gateway = gateway
        return [Endpoint("GET", "/outside/{name}", self.hello, "native")]

    async def hello(self, exchange: Exchange) -> None:
        """Greet, and say what is served."""
        said = {
            "said": f"{self._greeting} {exchange.head.params['name']}",
            "models": list(await self._gateway.models()),
        }
        exchange.respond(200, orjson.dumps(said))


class Squatter(Hello):
    """A surface that wants a route of ours."""

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """Not its own."""
        return [Endpoint("GET", "/v1/models", self.hello, "openai")]


ADMIT = Feature(NoOptions, OutsideAdmit)
RAG = Feature(RagConfig, OutsideRag)
STREAM = Feature(NoOptions, OutsideStream)
POST_PROCESS = Feature(NoOptions, OutsidePostProcess)
ASSEMBLE = Feature(NoOptions, OutsideAssemble)
INFERENCE = Feature(NoOptions, OutsideInference)
ATTEMPT = Feature(NoOptions, OutsideAttempt)
PARROT = Feature(ParrotConfig, Parrot)
LAST = Feature(NoOptions, LastBackend)
HELLO = Feature(HelloConfig, Hello)
SQUATTER = Feature(HelloConfig, Squatter)
NOT_A_FEATURE = "nothing of the kind"

POINTS: dict[str, dict[str, str]] = {
    "stages": {name: f"{__name__}:{name.removeprefix('outside_').upper()}" for name in STAGES}
    | {
        "outside_broken": f"{__name__}:MISSING",
        "outside_odd": f"{__name__}:NOT_A_FEATURE",
        "outside_gone": "no_such_module:FEATURE",
    },
    "backends": {"outside_parrot": f"{__name__}:PARROT"},
    "routes": {"outside_last": f"{__name__}:LAST"},
    "surfaces": {
        "outside_hello": f"{__name__}:HELLO", "outside_squatter": f"{__name__}:SQUATTER",
    },
}  # fmt: skip


def install(folder: Path, points: Mapping[str, Mapping[str, str]] = POINTS) -> dict[str, str]:
    """Install the package into ``folder``; answers the environment that finds it there."""
    about = folder / "outside_tpo-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-tpo\nVersion: 1.0\n")
    lines: list[str] = []
    for door, named in points.items():
        lines += [f"[tpo_mp.{door}]", *(f"{name} = {value}" for name, value in named.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    more = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{more}" if more else str(folder)}
