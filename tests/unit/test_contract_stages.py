"""Every stage, whatever it does: a call passes through it, an error gets out of it.

Two stages of our own run too, so that the suite is never empty.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable
from typing import Any, ClassVar

import pytest
from msgspec import Struct

from tests.support import contract
from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, HeldStream, turns
from tests.support.raw import chat
from tests.support.wait import until
from tpo_mp import registry
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.chain import fold
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.ports import Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class InLine:
    """A stage that never waits."""

    phase: ClassVar[Phase] = Phase.RAG

    def __init__(self, config: Config, env: Env) -> None:
        self._calls = env.metrics.counter("calls_total", "Calls.", stage="in_line")

    def before(self, call: Call) -> None:
        """Count."""
        self._calls.inc()

    def after(self, call: Call, reply: Reply) -> None:
        """Nothing to change."""


class Waits:
    """A stage that may."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        pass

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply:
        await asyncio.sleep(0)
        return await proceed(call)


OWN = {"in_line": Feature(Config, InLine), "waits": Feature(Config, Waits)}
NAMES = [*OWN, *contract.names("stages")]


def feature(name: str) -> Feature:
    """A stage by name."""
    return OWN.get(name) or registry.find("stages", name)


def make(name: str, world: FakeWorld | None = None) -> Any:
    """Build a stage with the options of the full pipeline."""
    found = feature(name)
    options = contract.full().stages.get(name) if name not in OWN else None
    return found.build(options or found.Config(), (world or FakeWorld()).env)


def call(**more: Any) -> Call:
    """An ordinary chat call."""
    return make_call(json.dumps(chat("hi", **more)).encode(), model="echo")


async def through(stage: Any, outcome: Reply | Exception) -> tuple[Reply | None, Any]:
    """Send a call through one stage."""

    def core(call: Call) -> Awaitable[Reply]:
        out: Promise[Reply] = Promise()
        if isinstance(outcome, Reply):
            out.resolve(outcome)
        else:
            out.reject(outcome)
        return out

    seen: list[Any] = []
    try:
        run(fold([stage], core)(call()), lambda reply, error: seen.append((reply, error)))
    except Exception as e:
        return None, e
    ends = await until(lambda: seen, what="an end of the call")
    return ends[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_stage_has_its_place_and_shape(name: str) -> None:
    """A phase, and one of the forms."""
    stage = make(name)
    assert isinstance(stage.phase, Phase)
    if callable(stage):
        assert list(inspect.signature(stage).parameters) == ["call", "proceed"]
        assert not hasattr(stage, "before")
        assert not hasattr(stage, "after")
    else:
        assert any(hasattr(stage, part) for part in ("before", "after", "blocked"))


@pytest.mark.parametrize("name", NAMES)
def test_options_are_strict_and_described(name: str) -> None:
    """Validation, help and docs come from them."""
    contract.check_options(feature(name).Config)


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_call_passes(name: str) -> None:
    """And so does its answer."""
    body = b'{"choices":[{"message":{"content":"hi"}}]}'
    reply, error = asyncio.run(through(make(name), Reply(200, body)))
    assert error is None
    assert reply is not None
    assert reply.status == 200
    assert reply.body


@pytest.mark.parametrize("name", NAMES)
def test_stream_passes_whole(name: str) -> None:
    """Every byte in order, one end, and pausing and cancelling reach its source."""

    async def story() -> None:
        held, sink = HeldStream(), Collected()
        reply, error = await through(make(name), Reply(200, None, stream=held))
        assert error is None
        assert reply is not None
        assert reply.stream is not None
        reply.stream.attach(sink)
        held.data(b'data: {"choices":[]}\n\n')
        reply.stream.pause()
        reply.stream.resume()
        held.data(b"data: [DONE]\n\n")
        held.end()
        await turns()
        assert sink.text == b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
        assert sink.ends == [None]
        assert held.told[:2] == ["pause", "resume"]
        reply.stream.cancel()

    asyncio.run(story())


@pytest.mark.parametrize("name", NAMES)
def test_error_gets_out(name: str) -> None:
    """As an error of ours, however often it was tried."""
    reply, error = asyncio.run(through(make(name), BackendFailure("broke")))
    assert reply is None
    assert isinstance(error, BackendFailure)


@pytest.mark.parametrize("name", NAMES)
def test_cancelled_call_lets_its_upstream_go(name: str) -> None:
    """A stage does not hold on to what nobody wants."""

    async def story() -> None:
        told: list[bool] = []
        ends: list[Any] = []
        cancel = run(
            fold([make(name)], lambda call: Promise(lambda: told.append(True)))(call()),
            lambda reply, error: ends.append(error),
        )
        await turns()
        if cancel is not None and not ends:
            cancel()
            await turns()
            assert told == [True]
        assert ends

    asyncio.run(story())


@pytest.mark.parametrize("name", NAMES)
def test_two_of_a_kind_share_nothing_of_their_own(name: str) -> None:
    """A reload builds another while the old one still serves."""
    world = FakeWorld()
    first, second = make(name, world), make(name, world)
    assert first is not second
    assert asyncio.run(through(second, Reply(200, b"{}")))[0] is not None
