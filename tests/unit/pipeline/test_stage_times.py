"""Time by stage: each has its own, on the way in and out, and is blamed for its own errors."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tpo_mp.errors import BackendFailure, RateLimited, TpoError
from tpo_mp.pipeline.chain import Chain
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.stage_times import NAME, StageTimes
from tpo_mp.types import STAGES, Call, Phase, Reply


class Series:
    """A histogram that keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def observe(self, value: float) -> None:
        """Keep."""
        self.seen.append(round(value, 3))


class World:
    """A clock that the stages move, and the series by stage."""

    def __init__(self) -> None:
        self.now = 100.0
        self.series: dict[str, Series] = {}
        self.error: TpoError | None = None

    def histogram(self, name: str, help: str, buckets: Sequence[float], **labels: str) -> Series:
        """Make one."""
        assert name == NAME
        return self.series.setdefault(labels["stage"], Series())

    def counter(self, *_: Any, **__: Any) -> Any:
        """None is wanted."""
        raise AssertionError

    gauge = counter

    def core(self, call: Call) -> Awaitable[Reply]:
        """The backend takes a second."""
        self.now += 1
        out: Promise[Reply] = Promise()
        if self.error is not None:
            out.reject(self.error)
        else:
            out.resolve(Reply(200, b"{}"))
        return out

    def serve(self, *stages: Any) -> tuple[Reply | None, Any]:
        """Run one call through a chain of these stages."""
        times = StageTimes(self, lambda: self.now)
        named = [(str(number), stage) for number, stage in enumerate(stages)]
        chain = Chain(named, lambda _attempt: self.core, times=times)
        ends: list[Any] = []
        try:
            run(chain.serve(make_call(b"{}")), lambda reply, error: ends.append((reply, error)))
        except TpoError as e:
            return None, e
        return ends[0]  # type: ignore[no-any-return]

    def seen(self) -> dict[str, list[float]]:
        """What was observed, by stage."""
        return {stage: series.seen for stage, series in self.series.items() if series.seen}


class Takes:
    """A stage that takes its time on both ways."""

    def __init__(
        self, world: World, phase: Phase, before_s: float, after_s: float, error: Any = None
    ) -> None:
        self.phase = phase
        self._world, self._before_s, self._after_s = world, before_s, after_s
        self._error = error

    def before(self, call: Call) -> None:
        """On the way in."""
        self._world.now += self._before_s
        if self._error is not None:
            raise self._error

    def after(self, call: Call, reply: Reply) -> None:
        """On the way out."""
        self._world.now += self._after_s


class TakesWaiting(Takes):
    """The same as a coroutine."""

    before = after = None  # type: ignore[assignment]

    async def __call__(self, call: Call, proceed: Any) -> Reply:
        Takes.before(self, call)
        reply: Reply = await proceed(call)
        Takes.after(self, call, reply)
        return reply


@pytest.mark.parametrize("kind", [Takes, TakesWaiting])
def test_each_stage_has_its_own_time(kind: Any) -> None:
    """Both ways of all its layers, and nothing of what is deeper."""
    world = World()
    reply, error = world.serve(
        kind(world, Phase.RAG, 0.1, 0.02),
        kind(world, Phase.RAG, 0.2, 0.03),
        kind(world, Phase.STREAM, 7, 7),
        kind(world, Phase.POST_PROCESS, 0.0, 0.5),
        kind(world, Phase.ASSEMBLE, 0.25, 0.0),
        kind(world, Phase.INFERENCE, 9, 9),
    )
    assert error is None
    assert reply is not None
    assert world.seen() == {"rag": [0.35], "post_process": [0.5], "assemble": [0.25]}


def test_every_stage_has_a_series_from_the_start() -> None:
    """Dashboards find them before the first call."""
    world = World()
    world.serve()
    assert set(world.series) == set(STAGES)
    assert world.seen() == {}


def test_calls_that_fail_took_time_too() -> None:
    """Wherever they fail."""
    world = World()
    world.error = BackendFailure("broke")
    world.serve(Takes(world, Phase.RAG, 0.1, 5), Takes(world, Phase.ASSEMBLE, 0.2, 5))
    assert world.seen() == {"rag": [0.1], "assemble": [0.2]}


@pytest.mark.parametrize("kind", [Takes, TakesWaiting])
@pytest.mark.parametrize("phase", [Phase.RAG, Phase.ASSEMBLE])
def test_error_names_the_stage_it_comes_from(kind: Any, phase: Phase) -> None:
    """Not the ones it passes on its way out."""
    world = World()
    stages = [
        kind(world, p, 0, 0, RateLimited("no") if p is phase else None)
        for p in (Phase.RAG, Phase.POST_PROCESS, Phase.ASSEMBLE)
    ]
    assert world.serve(*stages)[1].stage == phase.name.lower()
    world.error = BackendFailure("broke")
    passing = [kind(world, p, 0, 0) for p in (Phase.RAG, Phase.POST_PROCESS, Phase.ASSEMBLE)]
    assert world.serve(*passing)[1].stage == "inference"


def test_error_that_names_its_stage_keeps_it() -> None:
    """A feature may know better."""
    world = World()
    error = RateLimited("no", stage="stream")
    world.serve(Takes(world, Phase.RAG, 0, 0, error))
    assert error.stage == "stream"
