"""Every backend, whatever it talks to: an answer or an error of ours, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support import contract
from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, turns
from tests.support.raw import chat
from tests.support.wait import until
from tpo_mp import registry
from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.pipeline.promise import run
from tpo_mp.pipeline.routing import wrap
from tpo_mp.ports import BackendConfig
from tpo_mp.types import Call, Reply

NAMES = contract.names("backends")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dials is refused."""

    async def refuse(*_args: Any, **_options: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)


def make(name: str) -> Any:
    """Build a backend with the options of the full pipeline, or its own defaults."""
    found = registry.find("backends", name)
    entries = [entry for entry in contract.full().backends if entry.kind == name]
    config = entries[0] if entries else found.Config(name=name, kind=name)
    return found.build(config, FakeWorld().env)


def call(**more: Any) -> Call:
    """An ordinary chat call."""
    body = chat("hello there", **more)
    return make_call(json.dumps(body).encode(), stream=bool(more.get("stream")))


async def infer(backend: Any, asked: Call) -> tuple[Reply | None, Any]:
    """One try."""
    seen: list[Any] = []
    run(wrap(backend, [])(asked), lambda reply, error: seen.append((reply, error)))
    ends = await until(lambda: seen, what="an end of the try")
    return ends[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_backend_has_its_shape(name: str) -> None:
    """A name, a try, a list, an end."""
    backend = make(name)
    assert isinstance(backend.name, str)
    assert callable(backend.infer)
    assert asyncio.iscoroutinefunction(backend.list_models)
    backend.close()
    backend.close()


@pytest.mark.parametrize("name", NAMES)
def test_options_extend_what_every_entry_has(name: str) -> None:
    """Strict, and every field says what it is for."""
    kind = registry.find("backends", name).Config
    assert issubclass(kind, BackendConfig)
    contract.check_options(kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
def test_try_is_answered_or_fails_as_an_error_of_ours(name: str, stream: bool) -> None:
    """In time, with the try's instant on the call."""

    async def story() -> None:
        backend, asked = make(name), call(stream=stream)
        reply, error = await infer(backend, asked)
        assert asked.upstream_at > 0
        if reply is None:
            assert isinstance(error, TpoError)
            assert error.retryable
        elif reply.stream is not None:
            assert stream
            sink = Collected()
            reply.stream.attach(sink)
            await turns()
            assert sink.ends == [None]
            assert sink.text.endswith(b"\n\n")
            assert reply.content_type.startswith(b"text/event-stream")
        else:
            assert json.loads(reply.body or b"")
        backend.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", NAMES)
def test_call_given_up_is_silent(name: str) -> None:
    """By its waiter, twice: nothing is told twice."""

    async def story() -> None:
        backend = make(name)
        ends: list[Any] = []
        cancel = run(wrap(backend, [])(call()), lambda reply, error: ends.append(error))
        if cancel is not None:
            cancel()
            cancel()
        await turns(20)
        assert len(ends) == 1
        backend.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", NAMES)
def test_models_are_listed_or_the_upstream_is_to_blame(name: str) -> None:
    """Names, or a failure the caller expects."""

    async def story() -> None:
        backend = make(name)
        try:
            listed = await backend.list_models()
        except BackendFailure:
            return
        assert all(isinstance(model, str) for model in listed)

    asyncio.run(story())
