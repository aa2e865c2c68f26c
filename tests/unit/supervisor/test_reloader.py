"""A reload that cannot be: the host goes on with what it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from tests.support.house import World
from tpo_mp.config.blob import to_blob
from tpo_mp.config.load import load
from tpo_mp.supervisor.compiling import Compilation, Compiled
from tpo_mp.supervisor.memory import HostMemory
from tpo_mp.supervisor.reload import Reloader

BLOB = to_blob(load(None, {}, {}))


@dataclass
class FakeCompilation:
    """A compiler child that is done at once."""

    result: Compiled

    def poll(self, _now: float) -> Compiled:
        """Answer."""
        return self.result


@dataclass
class FakeMemory:
    """Remembers what was published."""

    plane: Any = None
    published: list[int] = field(default_factory=list)

    def publish_config(self, epoch: int, _blob: bytes) -> None:
        """Note the epoch."""
        self.published.append(epoch)


def reload_with(compiled: Compiled | OSError) -> tuple[dict[str, Any], FakeMemory]:
    """Run one reload whose compiler child answers ``compiled``."""
    world, memory, answers = World(), FakeMemory(), list[dict[str, Any]]()

    def compile_now(_now: float, _ports: Mapping[str, int]) -> Compilation:
        if isinstance(compiled, OSError):
            raise compiled
        return cast("Compilation", FakeCompilation(compiled))  # only ``poll`` is asked

    reloader = Reloader(cast("HostMemory", memory), BLOB, compile_now, lambda _view: None)
    reloader.request(answers.append)
    for _ in range(3):
        reloader.turn(world.context, world.now)
    assert not reloader.busy
    return answers[0], memory


def test_a_blob_of_newer_code_is_refused() -> None:
    """After an upgrade on disk the compiler child may write what this supervisor cannot read."""
    opened = msgspec.msgpack.decode(BLOB)
    opened["process"]["server"]["not_known_yet"] = 1
    answer, memory = reload_with(Compiled(msgspec.msgpack.encode(opened), (), 0))
    assert answer["ok"] is False
    assert answer["problems"][0].startswith("restart needed")
    assert not memory.published


def test_a_blob_that_is_none_is_refused() -> None:
    """Nothing the compiler child prints can end the supervisor."""
    answer, memory = reload_with(Compiled(b"garbage", (), 0))
    assert answer["ok"] is False
    assert not memory.published


def test_the_compilers_problems_are_the_answer() -> None:
    """Line by line, as it told them."""
    answer, _ = reload_with(Compiled(b"", ("tpo.toml: server.port: want 0..65535",), 2))
    assert answer == {"ok": False, "problems": ["tpo.toml: server.port: want 0..65535"]}


def test_a_compiler_that_cannot_start_is_a_refusal() -> None:
    """No process left on the host: the old configuration stays."""
    answer, memory = reload_with(BlockingIOError(11, "Resource temporarily unavailable"))
    assert answer["ok"] is False
    assert not memory.published


def test_a_supervisor_that_stood_still_waits_for_answers_that_could_not_come() -> None:
    """The workers stood still with it; who is silent while others run is named as late."""
    world, answers = World(), list[dict[str, Any]]()
    world.boot()
    memory = FakeMemory(world.plane)
    compilation = cast("Compilation", FakeCompilation(Compiled(BLOB, (), 0)))
    reloader = Reloader(
        cast("HostMemory", memory), BLOB, lambda _now, _ports: compilation, lambda _view: None
    )
    reloader.request(answers.append)
    for _ in range(3):
        reloader.turn(world.context, world.now)
    world.now += 60
    reloader.turn(world.context, world.now)
    assert (memory.published, answers) == ([2], [])
    late, *others = (child.seat for child in world.house.children if child.serving)
    for seat in others:
        world.plane.seat(seat).config_ack = 2
    for _ in range(50):
        world.now += 0.05
        reloader.turn(world.context, world.now)
    (answer,) = answers
    assert (answer["ok"], answer["late"]) == (True, [late])
