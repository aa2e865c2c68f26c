"""What a try counts as, in whatever way its backend answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    Cancelled,
    InvalidRequest,
    RateLimited,
    TpoError,
)
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.scoring import Scoreboard, scored
from tpo_mp.ports import BackendConfig
from tpo_mp.types import Call, Reply, Sink, TryTally

ENTRY = BackendConfig(name="a", kind="echo", models=("m", "glob-*"))


class Held:
    """A stream that a test ends."""

    sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class _Sink:
    def data(self, chunk: bytes) -> None: ...

    def end(self, error: TpoError | None) -> None: ...


class Bench:
    """One backend that answers as it is told, seen by two processes."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.env = self.world.env
        self.other = Scoreboard(self.world.scores.seat(1), [ENTRY])

    def ask(self, outcome: Any, model: str = "m") -> Any:
        """One try; answers its reply or error."""
        got: list[Any] = []

        def backend(call: Call) -> Awaitable[Reply]:
            call.upstream_at = self.world.now
            call.first_byte_at = self.world.now + 0.3
            if callable(outcome):
                return outcome()  # type: ignore[no-any-return]
            said: Promise[Reply] = Promise()
            said.reject(outcome) if isinstance(outcome, BaseException) else said.resolve(outcome)
            return said

        serve = scored(backend, ENTRY, self.env)
        run(serve(make_call(b"{}", model=model)), lambda v, e: got.append(v or e))
        return got[0] if got else None

    def total(self) -> TryTally:
        """What the other process reads."""
        return self.other.total("a")


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (Reply(200, b"ok"), (1, 0, 0, 0)),
        (BackendFailure("x", reason="upstream_error"), (0, 1, 0, 0)),
        (BackendRefused("x"), (0, 1, 0, 0)),
        (RateLimited("x"), (0, 0, 1, 0)),
        (BackendFailure("x", reason="upstream_auth_failed"), (0, 0, 0, 1)),
        (InvalidRequest("x"), (0, 0, 0, 0)),
        (asyncio.CancelledError(), (0, 0, 0, 0)),
        (ValueError("a defect"), (0, 0, 0, 0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_outcome_counts_by_whose_fault_it_is(
    outcome: Any, counts: tuple[int, int, int, int]
) -> None:
    """Once, and it goes on as it came."""
    bench = Bench()
    assert bench.ask(outcome) is outcome
    assert bench.total()[:4] == counts


def test_a_stream_counts_when_it_is_over() -> None:
    """Good, broken, or left by its client; timed to its first byte."""
    bench, ends = Bench(), [None, BackendFailure("x", reason="cut_off"), Cancelled("x")]
    for error in ends:
        held = Held()
        reply = Reply(200, None, stream=held)
        before = bench.total()
        got = bench.ask(reply)
        assert bench.total() == before
        got.stream.attach(_Sink())
        bench.world.now += 60
        assert held.sink is not None
        held.sink.end(error)
    total = bench.total()
    assert total[:4] == (1, 1, 0, 0)
    assert 0.25 < (total.quantile_s(0.5) or 0) < 0.4
    assert bench.other.last_bad("a") == (1120.0, "cut_off")


def test_raising_at_once_and_coroutines_count_too() -> None:
    """Not every backend answers a promise."""
    bench = Bench()

    def raises() -> Awaitable[Reply]:
        raise BackendFailure("x", reason="bad_upstream_body")

    async def answers() -> Reply:
        return Reply(200, b"ok")

    async def fails() -> Reply:
        raise BackendRefused("x")

    with pytest.raises(BackendFailure):
        bench.ask(raises)
    assert bench.ask(answers).status == 200
    assert isinstance(bench.ask(fails), BackendRefused)
    assert bench.total()[:2] == (1, 2)


def test_models_that_the_config_does_not_name_share_one_target() -> None:
    """However many clients make up."""
    bench = Bench()
    for model in ("m", "glob-1", "glob-2"):
        bench.ask(Reply(200, b"ok"), model)
    found = {model: score.total().good for model, score in bench.other.of("a")}
    assert found == {"m": 1, "*": 2}
