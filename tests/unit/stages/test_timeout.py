"""How long a try is waited for: learnt from what all workers saw, with bounds on both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import BackendFailure, BackendTimeout
from tpo_mp.pipeline.attribution import Blame, blame
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig
from tpo_mp.stages.timeout import LEARNT_FOR_S, Config, Timeout
from tpo_mp.types import Reply, Sink


class Left:
    """A stream that nobody wants any more, sooner or later."""

    cancelled = False

    def attach(self, sink: Sink) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


class Host:
    """Two processes in front of one backend."""

    def __init__(self, **options: Any) -> None:
        self.world = FakeWorld()
        config = msgspec.convert({"min_samples": 20, **options}, Config)
        self.stages = []
        for seat in (0, 1):
            env = replace(self.world.env, scores=self.world.scores.seat(seat))
            stage = Timeout(config, env)
            stage.meet([BackendConfig(name="b", kind="echo", models=("m",))])
            self.stages.append(stage)

    def begin(self, seat: int = 0, **more: Any) -> tuple[Promise[Reply], Promise[Reply]]:
        """Start a try: the backend's promise, and what the caller gets."""
        inner: Promise[Reply] = Promise()
        out = self.stages[seat](
            make_call(b"{}", model="m", backend="b", **more), lambda _call: inner
        )
        assert isinstance(out, Promise)
        return inner, out

    def learn(self, took_s: float, times: int = 20, **more: Any) -> None:
        """So many answers, on both processes in turn."""
        for n in range(times):
            inner, out = self.begin(n % 2, **more)
            self.world.advance(took_s)
            inner.resolve(Reply(200, b"{}"))
            assert out.value is not None
        self.world.advance(LEARNT_FOR_S)

    def limit_s(self, seat: int = 0, **more: Any) -> float:
        """After how long a try is given up; ten minutes: it is not."""
        inner, out = self.begin(seat, **more)
        waited_s = 0.0
        while not out.done and waited_s < 600:
            self.world.advance(0.05)
            waited_s += 0.05
        if not out.done:
            inner.resolve(Reply(200, b"{}"))
            return 600.0
        assert isinstance(out.error, BackendTimeout)
        assert inner.done, "the backend is not asked any more"
        return waited_s


def test_it_is_learnt_from_what_all_workers_saw() -> None:
    """Ten answers on each of two are twenty; before, nothing is given up."""
    host = Host()
    host.learn(0.9, 19)
    inner, out = host.begin()
    host.world.advance(500)
    assert not out.done
    inner.resolve(Reply(200, b"{}"))
    for seat in (0, 1):
        host = Host()
        host.learn(0.9)
        assert 1.4 < host.limit_s(seat) < 2.1


def test_bounds_hold() -> None:
    """However fast or slow it usually is."""
    fast, slow = Host(floor_s=0.5), Host(ceiling_s=3.0)
    fast.learn(0.001)
    assert fast.limit_s() == pytest.approx(0.5, abs=0.06)
    slow.learn(9.0)
    assert slow.limit_s() == pytest.approx(3.0, abs=0.06)


def test_streams_and_whole_replies_are_apart() -> None:
    """A first event comes long before a whole reply."""
    host = Host()
    host.learn(0.1, stream=True)
    host.learn(9.0)
    assert host.limit_s(stream=True) < 1
    assert host.limit_s() > 12


def test_a_deadline_that_comes_first_is_left_to_its_owner() -> None:
    """It is no fault of the backend."""
    host = Host()
    host.learn(0.1)
    _, out = host.begin(deadline=host.world.now + 0.3)
    host.world.advance(60)
    assert not out.done


def test_what_is_given_up_is_no_proof_of_a_broken_backend_and_a_sample() -> None:
    """So one that has become slower is waited for longer."""
    host = Host(floor_s=0.1)
    host.learn(0.3)
    before = host.limit_s()
    _, out = host.begin()
    host.world.advance(10)
    assert isinstance(out.error, BackendTimeout)
    assert blame(out.error) is Blame.CAPACITY
    score = host.world.scores.seat(1).of("b:m")
    assert score is not None
    assert score.total().bad == 2
    assert score.last_bad()[1] == "unusually_slow"
    host.world.advance(LEARNT_FOR_S)
    assert host.limit_s() > before * 1.2


def test_time_doubles_until_a_reply_is_in_time() -> None:
    """Up to the ceiling, and there it is a failure; tries that began together double it once."""
    host = Host(floor_s=0.5, ceiling_s=3.0)
    host.learn(0.001, 2000)
    together = [host.begin()[1] for _ in range(5)]
    host.world.advance(0.56)
    assert all(isinstance(out.error, BackendTimeout) for out in together)
    inner, out = host.begin()
    host.world.advance(0.9)  # slower than was learnt: what was doubled stays
    inner.resolve(Reply(200, b"{}"))
    assert out.value is not None
    for limit_s in (1.0, 2.0, 3.0, 3.0):
        assert host.limit_s() == pytest.approx(limit_s, abs=0.11)
    _, out = host.begin()
    host.world.advance(3.1)
    assert isinstance(out.error, BackendTimeout)
    assert (out.error.reason, blame(out.error)) == ("silent", Blame.BACKEND)
    inner, _ = host.begin()
    inner.resolve(Reply(200, b"{}"))
    assert host.limit_s() < 2.9


def test_who_says_nothing_through_three_doublings_is_broken() -> None:
    """Long before the ceiling."""
    host = Host(floor_s=0.5, ceiling_s=300.0)
    host.learn(0.001, 2000)
    blames = []
    for _ in range(5):
        _, out = host.begin()
        host.world.advance(host.limit_s() + 0.06)
        assert out.error is not None
        blames.append(blame(out.error))
    assert blames == [Blame.CAPACITY] * 3 + [Blame.BACKEND] * 2


def test_late_replies_are_let_go_and_leaving_clients_too() -> None:
    """A stream that begins just as it was given up is cancelled; so is a try nobody waits for."""
    host = Host()
    host.learn(0.1)
    inner: Promise[Reply] = Promise()
    late = Left()
    # A backend that does not hear of the cancel.
    out = host.stages[0](make_call(b"{}", model="m", backend="b"), lambda _call: _deaf(inner))
    assert isinstance(out, Promise)
    host.world.advance(1.0)
    assert isinstance(out.error, BackendTimeout)
    inner.resolve(Reply(200, None, stream=late))
    inner, out = host.begin()
    out.cancel()
    assert inner.done
    host.world.advance(60)


async def _deaf(inner: Promise[Reply]) -> Reply:
    return await inner


def test_errors_pass_and_are_no_samples() -> None:
    """They say nothing of how long an answer takes."""
    host = Host()
    for n in range(40):
        inner, out = host.begin(n % 2)
        inner.reject(BackendFailure("x", reason="upstream_error"))
        assert isinstance(out.error, BackendFailure)
    host.world.advance(LEARNT_FOR_S)
    assert host.limit_s() == 600.0
