"""A provider that follows the live state, from the next call on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from tests.support.fake_env import FakeWorld, SilentSeries, make_call
from tests.support.fake_net import Collected
from tests.support.raw import chat
from tpo_mp.backends.simulator import Config, SimulatorBackend
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Env
from tpo_mp.simulator import read_ahead
from tpo_mp.simulator.kept_files import KeptFiles
from tpo_mp.simulator.live import LiveState, change
from tpo_mp.simulator.living import LivingBackend
from tpo_mp.types import Call, Dialect, Reply

FILE = Config(name="sim", kind="simulator", seed=3)


class Recorder:
    """A provider that says its seed, and whether it is in use."""

    dialects = (Dialect.OPENAI_CHAT,)
    journal = None

    def __init__(self, config: Config, env: Env, state: LiveState) -> None:
        self.config = config
        self.state = state
        self.closed = False

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer the seed."""
        said: Promise[Reply] = Promise()
        said.resolve(Reply(200, b"%d" % self.config.seed))
        return said

    async def list_models(self) -> Sequence[str]:
        """Answer whose options these are."""
        return [str(self.config.seed)]

    def close(self) -> None:
        """Note it."""
        self.closed = True


def seed_of(backend: LivingBackend[Config]) -> int:
    """Ask for the seed in force."""
    said = backend.infer(make_call(b"{}"))
    assert isinstance(said, Promise)
    assert said.value is not None
    return int(said.value.body or b"")


def tell(world: FakeWorld, **state: object) -> None:
    """Change the live state."""
    asyncio.run(change(world.env.live, lambda old: structs.replace(old, **state)))


def test_the_next_call_is_answered_by_the_new_options() -> None:
    """The old provider is let go of, once."""
    world = FakeWorld()
    backend = LivingBackend(FILE, world.env, Recorder)
    assert seed_of(backend) == 3
    first = backend.inner
    tell(world, options={"seed": 8})
    assert seed_of(backend) == 8
    assert first.closed
    assert not backend.inner.closed
    assert asyncio.run(backend.list_models()) == ["8"]
    tell(world, options={})
    assert seed_of(backend) == 3


def test_one_that_is_made_later_starts_with_the_state_in_force() -> None:
    """A replaced worker, or a reloaded file."""
    world = FakeWorld()
    tell(world, options={"seed": 8}, chaos=False)
    backend = LivingBackend(FILE, world.env, Recorder)
    assert seed_of(backend) == 8
    assert not backend.inner.state.chaos


def test_options_that_this_file_cannot_take_are_left_out() -> None:
    """The file's are in force; the worker lives."""
    world = FakeWorld()
    backend = LivingBackend(FILE, world.env, Recorder)
    tell(world, options={"no_such_option": 1})
    assert seed_of(backend) == 3
    backend.close()
    assert backend.inner.closed


def test_calls_under_way_are_counted_until_their_stream_ends() -> None:
    """Whole answers never are; a stream is until its last byte, or until its client leaves."""
    world = FakeWorld()
    backend = LivingBackend(FILE, world.env, SimulatorBackend)
    levels = SilentSeries()
    backend._meter.active = levels
    body = json.dumps(chat("rivers", model="gpt-4o")).encode()

    def ask(*, stream: bool) -> Reply:
        said = backend.infer(make_call(body, model="gpt-4o", stream=stream))
        assert isinstance(said, Promise)
        assert said.value is not None
        return said.value

    ask(stream=False)
    assert levels.value == 0
    first, second = ask(stream=True), ask(stream=True)
    assert levels.value == 2
    assert first.stream is not None
    assert second.stream is not None
    first.stream.attach(Collected())
    assert levels.value == 1
    second.stream.cancel()
    assert levels.value == 0


def test_calls_wait_while_a_file_is_read_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all of them; one that leaves takes no other with it."""
    world, path = FakeWorld(), tmp_path / "rows"
    path.write_text("rows")
    begun, may_end, readers = threading.Event(), threading.Event(), list[int]()

    def parse(_path: Path) -> str:
        readers.append(threading.get_ident())
        begun.set()
        assert may_end.wait(30)
        return "rows"

    kept = KeptFiles(parse, most=1, most_bytes=100)
    monkeypatch.setattr(read_ahead, "FILES", {"dataset": kept})
    backend = LivingBackend(FILE, world.env, Recorder)
    kept_dataset = {"dataset": str(path), "seed": 8}

    async def ask() -> list[bytes | None]:
        await change(world.env.live, lambda old: structs.replace(old, options=kept_dataset))
        calls = [asyncio.ensure_future(backend.infer(make_call(b"{}"))) for _ in range(3)]
        await asyncio.to_thread(begun.wait, 30)
        assert not any(call.done() for call in calls)
        calls[0].cancel()
        may_end.set()
        said = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(said[0], asyncio.CancelledError)
        assert isinstance(backend.infer(make_call(b"{}")), Promise)
        return [reply.body for reply in said[1:] if isinstance(reply, Reply)]

    monkeypatch.setattr("tpo_mp.simulator.living.patched", lambda c, o: structs.replace(c, seed=8))
    assert asyncio.run(ask()) == [b"8", b"8"]
    assert len(readers) == 1
    assert readers[0] != threading.get_ident()
