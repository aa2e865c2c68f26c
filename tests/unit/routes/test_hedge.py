"""Hedging: when a second backend is asked, who wins, and what becomes of the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure, CircuitOpen, Rejected
from tpo_mp.pipeline.promise import Promise
from tpo_mp.routes.hedge import FEATURE, LEAST
from tpo_mp.types import Call, Reply, Usage


class Counted(SilentMetrics):
    """Metrics a test can read, by name and backend."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault((name, labels["backend"]), SilentSeries())


class Racer:
    """A backend whose outcomes the test decides."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = False
        self.asked: list[tuple[Call, Promise[Reply]]] = []
        self.cancelled = 0
        self.at_once: BaseException | None = None

    def blocked(self, _call: Call) -> bool:
        """What its breaker says."""
        return self.open

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Take the call."""
        call.backend = self.name
        call.attempts += 1
        if self.at_once is not None:
            raise self.at_once
        said: Promise[Reply] = Promise(self._cancel)
        self.asked.append((call, said))
        return said

    def _cancel(self) -> None:
        self.cancelled += 1

    def answer(self, outcome: Any = None) -> None:
        """Give the last call its outcome."""
        call, said = self.asked[-1]
        if isinstance(outcome, BaseException):
            said.reject(outcome)
        else:
            call.first_byte_at = 4711.0
            said.resolve(outcome or Reply(200, self.name.encode()))


class Course:
    """A route over two backends, or more, in a world that stands still."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.world = FakeWorld()
        self.counted = Counted()
        env = replace(self.world.env, metrics=self.counted)
        options = {"budget_floor": 100, "delay_s": 0.5} | options
        self.route = FEATURE.build(msgspec.convert(options, FEATURE.Config), env)
        self.racers = [Racer(name) for name in names or ("a", "b")]
        # The backends take turns in being the first: the next is the first of the list.
        self.route._turn = -1
        self.call = make_call(b"{}")
        self.outcome: list[Any] = []

    def run(self) -> Promise[Reply]:
        """Begin a call."""
        self.call = make_call(b"{}")
        self.outcome.clear()
        promise: Promise[Reply] = self.route(self.call, self.racers)
        promise.then(lambda reply, error: self.outcome.append(error or reply))
        return promise

    def told(self, name: str, backend: str) -> float:
        """What a counter says."""
        found = self.counted.series.get((name, backend))
        return found.value if found is not None else 0.0


def test_quick_first_is_all_that_is_asked() -> None:
    """And no timer asks later."""
    course = Course()
    course.run()
    a, b = course.racers
    a.answer()
    course.world.advance(10)
    assert course.outcome[0].body == b"a"
    assert (len(a.asked), len(b.asked), course.call.attempts) == (1, 0, 1)


@pytest.mark.parametrize("winner", [0, 1])
def test_slow_first_has_a_rival_and_the_loser_is_cancelled(winner: int) -> None:
    """Whoever begins first; the call tells of the winner, and the loser's prompt is counted."""
    course = Course()
    course.run()
    course.world.advance(0.49)
    assert not course.racers[1].asked
    course.world.advance(0.02)
    won, lost = course.racers[winner], course.racers[1 - winner]
    reply = Reply(200, b"first")
    reply.usage = Usage(7, 5)
    won.answer(reply)
    assert course.outcome == [reply]
    assert (won.cancelled, lost.cancelled) == (0, 1)
    assert (course.call.backend, course.call.attempts) == (won.name, 2)
    assert course.call.unclear, "both may have done the work"
    assert course.call.first_byte_at == 4711.0
    assert course.told("tpo_hedges_total", "b") == 1
    assert course.told("tpo_hedges_won_total", "b") == winner
    assert course.told("tpo_hedge_lost_tokens_total", lost.name) == 7


def test_stream_that_comes_too_late_is_given_up() -> None:
    """It began in the very moment in which the other one had won."""
    course = Course()
    course.run()
    course.world.advance(0.6)
    a, b = course.racers
    late: Any = HeldStream()
    _, said = b.asked[0]
    said.cancel_with = lambda: said.resolve(Reply(200, None, stream=late))
    a.answer()
    assert late.told == ["cancel"]
    assert course.outcome[0].body == b"a"


def test_failed_first_is_replaced_at_once_and_two_failures_are_one() -> None:
    """Without any delay; the last error is told."""
    course = Course()
    course.run()
    a, b = course.racers
    a.answer(BackendFailure("one"))
    assert len(b.asked) == 1
    last = BackendFailure("two")
    b.answer(last)
    assert course.outcome == [last]
    a.at_once, b.at_once = CircuitOpen("a"), last
    course.route._turn = -1
    course.run()
    assert course.outcome == [last]


@pytest.mark.parametrize("error", [Rejected("your fault"), ZeroDivisionError()])
def test_fault_that_no_backend_can_mend_ends_it(error: Exception) -> None:
    """The rival is cancelled."""
    course = Course()
    course.run()
    course.world.advance(0.6)
    a, b = course.racers
    b.answer(error)
    assert course.outcome == [error]
    assert a.cancelled == 1


def test_client_that_leaves_ends_both() -> None:
    """And nobody is asked later."""
    course = Course()
    promise = course.run()
    promise.cancel()
    course.world.advance(10)
    a, b = course.racers
    assert (a.cancelled, len(b.asked)) == (1, 0)
    promise = course.run()
    course.world.advance(0.6)
    promise.cancel()
    assert (a.cancelled, b.cancelled) == (2, 1)
    assert isinstance(course.outcome[0], asyncio.CancelledError)


def test_second_requests_have_a_budget() -> None:
    """One for the host, and apart from that of retries."""
    course = Course(budget=0.0, budget_floor=2)
    for _ in range(5):
        course.run()
        course.world.advance(0.6)
    assert sum(len(racer.asked) for racer in course.racers) == 7
    assert "hedge:budget" in course.world.env.ledger.names  # type: ignore[attr-defined]


def test_delay_is_learnt_from_the_last_replies() -> None:
    """The time within which nearly all had begun, but no less than the least."""
    course = Course("a", "b", delay_s=None, first_delay_s=3.0)
    assert course.route.delay_s == 3.0
    for number in range(LEAST):
        course.route.learn(0.01 * number)
    assert course.route.delay_s == pytest.approx(0.19)
    for _ in range(100):
        course.route.learn(0.001)
    assert course.route.delay_s == 0.05


def test_backends_take_turns_and_what_is_closed_off_is_left_out() -> None:
    """With one left there is no race."""
    course = Course("a", "b", "c")
    for racer in course.racers:
        course.run()
        assert len(racer.asked) == 1
        racer.answer()
    a, b, c = course.racers
    a.open = b.open = True
    course.run()
    course.world.advance(10)
    assert (len(a.asked), len(b.asked), len(c.asked)) == (1, 1, 2)
