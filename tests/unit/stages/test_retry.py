"""Retries: which failures, which backend next, how long in between, and who is answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.config import load
from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    CircuitOpen,
    ConfigError,
    RateLimited,
    Rejected,
    Shed,
    TpoError,
)
from tpo_mp.pipeline.promise import Promise
from tpo_mp.stages.retry import FEATURE, Config
from tpo_mp.types import Call, Reply


class Counted(SilentMetrics):
    """Metrics a test can read, by name and label."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault((name, *labels.values()), SilentSeries())


class Scene:
    """One call before backends that do what a test says, in a world that stands still."""

    def __init__(self, *backends: str, deadline_s: float | None = None, **options: Any) -> None:
        self.world = FakeWorld()
        self.counted = Counted()
        self.options = {"jitter": "none", "budget_floor": 100} | options
        env = replace(self.world.env, metrics=self.counted)
        self.stage = FEATURE.build(msgspec.convert(self.options, Config), env)
        self.backends = backends or ("a",)
        self.scripts: dict[str, list[Any]] = {name: [] for name in self.backends}
        self.asked: list[str] = []
        self.at: list[float] = []
        self.call = make_call(b"{}")
        if deadline_s is not None:
            self.call.deadline = self.world.now + deadline_s
        self.outcome: list[tuple[Reply | None, BaseException | None]] = []

    def say(self, backend: str, *does: Any) -> Scene:
        """What a backend does with its first, second … request; then it answers."""
        self.scripts[backend] += does
        return self

    def proceed(self, call: Call) -> Awaitable[Reply]:
        """Pick the first that was not tried, as ``failover`` does, and do as scripted."""
        if len(self.backends) > 1:
            call.choices = self.backends
        tried = call.tried or set()
        name = next((n for n in self.backends if n not in tried), self.backends[0])
        call.backend = name
        call.attempts += 1
        self.asked.append(name)
        self.at.append(round(self.world.now - 1000.0, 3))
        does = self.scripts[name].pop(0) if self.scripts[name] else "answer"
        if does == "raise":
            raise BackendRefused("at once")
        said: Promise[Reply] = Promise(lambda: self.asked.append("cancelled"))
        if isinstance(does, BaseException):
            said.reject(does)
        elif does == "answer":
            said.resolve(Reply(200, name.encode()))
        return said

    def run(self, *, until_s: float = 60.0) -> Any:
        """Answer the reply's body or the error, letting pauses pass."""
        self.begin()
        while not self.outcome and self.world.now < 1000.0 + until_s:
            self.world.advance(0.001)
        reply, error = self.outcome[0]
        return error if reply is None else reply.body

    def begin(self) -> Promise[Reply]:
        """Start the call."""
        promise = self.stage(self.call, self.proceed)
        assert isinstance(promise, Promise)
        promise.then(lambda reply, error: self.outcome.append((reply, error)))
        return promise

    def counter(self, *key: str) -> float:
        """What a counter says."""
        return self.counted.series[key].value if key in self.counted.series else 0.0


def busy(retry_after_s: float | None = None, lines: bytes = b"") -> RateLimited:
    """An upstream's 429."""
    error = RateLimited("slow down", reason="upstream_rate_limited", retry_after_s=retry_after_s)
    error.lines = lines
    return error


def failure(reason: str = "upstream_error") -> BackendFailure:
    """An upstream's 500."""
    return BackendFailure("broken", reason=reason)


def test_first_try_that_succeeds_is_all_there_is() -> None:
    """No pause, no ledger, no second request."""
    scene = Scene()
    assert scene.run() == b"a"
    assert scene.asked == ["a"]
    assert scene.world.filed == []
    assert not scene.world.env.ledger.names  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, [0, 0.1, 0.3, 0.7]),
        ({"multiplier": 3.0, "max_s": 0.5}, [0, 0.1, 0.4, 0.9]),
        ({"strategy": "linear"}, [0, 0.1, 0.3, 0.6]),
        ({"strategy": "fixed", "base_s": 0.2}, [0, 0.2, 0.4, 0.6]),
    ],
)
def test_pauses_grow_as_configured(options: dict[str, Any], at: list[float]) -> None:
    """Exponential, linear or fixed, up to the longest."""
    scene = Scene(attempts=4, **options).say("a", *[failure() for _ in range(3)])
    assert scene.run() == b"a"
    assert scene.at == pytest.approx(at, abs=0.005)
    assert scene.call.attempts == 4
    assert scene.counter("orchestrator_retries_total", "a") == 3
    assert scene.counter("orchestrator_worker_errors_total", "a", "inference") == 3


def test_full_jitter_is_any_time_up_to_the_pause() -> None:
    """Never longer, seldom the same."""
    scene = Scene(jitter="full")
    pauses = [scene.stage.pause_s(2) for _ in range(200)]
    assert all(0 <= pause <= 0.4 for pause in pauses)
    assert min(pauses) < 0.05
    assert max(pauses) > 0.35


@pytest.mark.parametrize(
    ("does", "unclear"), [(failure(), False), ("raise", False), (failure("cut_off"), True)]
)
def test_a_call_says_whether_a_failed_try_may_have_worked(does: Any, unclear: bool) -> None:
    """Whatever comes of the next."""
    scene = Scene().say("a", does, failure())
    assert scene.run() == b"a"
    assert scene.call.unclear is unclear


def test_attempts_include_the_first() -> None:
    """Three failures are an error, and the third one's."""
    last = failure()
    scene = Scene().say("a", failure(), "raise", last)
    assert scene.run() is last
    assert scene.asked == ["a"] * 3
    single = Scene(attempts=1).say("a", failure())
    assert isinstance(single.run(), BackendFailure)
    assert single.asked == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        Rejected("your fault", reason="upstream_rejected", status=422),
        BackendFailure("no key", reason="upstream_auth_failed"),
        CircuitOpen("known to fail"),
        Shed("full", reason="backpressure"),
        busy(lines=b"x-should-retry: false\r\n"),
        busy(lines=b"retry-after: Fri, 27 Nov 2026 10:00:00 GMT\r\n"),
    ],
    ids=["client", "credential", "open", "shed", "told not to", "a date"],
)
def test_what_waiting_cannot_cure_is_answered_at_once(error: TpoError) -> None:
    """One request, and no pause."""
    scene = Scene().say("a", error)
    assert scene.run(until_s=0.02) is error
    assert scene.asked == ["a"]


def test_a_defect_is_no_failure_of_a_try() -> None:
    """It is passed on as it is."""
    defect = ZeroDivisionError()
    scene = Scene("a", "b").say("a", defect)
    assert scene.run(until_s=0.02) is defect
    assert scene.asked == ["a"]


@pytest.mark.parametrize(
    "error",
    [failure(), busy(2), BackendFailure("no key", reason="upstream_auth_failed"), CircuitOpen("x"),
     Shed("full", reason="backpressure"), BackendRefused("down"),
     busy(lines=b"x-should-retry: false\r\n")],
    ids=["failure", "busy", "credential", "open", "shed", "refused", "told not to"],
)  # fmt: skip
def test_another_backend_is_asked_at_once(error: TpoError) -> None:
    """Whatever is not the client's fault, without any pause."""
    scene = Scene("a", "b").say("a", error)
    assert scene.run(until_s=0.02) == b"b"
    assert scene.asked == ["a", "b"]
    assert scene.at == [0, 0]


def test_clients_fault_goes_nowhere() -> None:
    """The second backend would say the same, or wrongly something else."""
    scene = Scene("a", "b").say("a", Rejected("no", reason="upstream_rejected", status=400))
    assert isinstance(scene.run(), Rejected)
    assert scene.asked == ["a"]


def test_every_backend_gets_its_turn_even_beyond_the_attempts() -> None:
    """Five of them, four dead; a pause comes only when all were asked."""
    scene = Scene(*"abcde")
    for name in "abcd":
        scene.say(name, failure())
    assert scene.run() == b"e"
    assert scene.at == [0] * 5
    twice = Scene("a", "b", attempts=4).say("a", failure()).say("b", failure())
    assert twice.run() == b"a"
    assert twice.asked == ["a", "b", "a"]
    assert twice.at == pytest.approx([0, 0, 0.1], abs=0.005)


def test_backend_that_refused_our_key_is_not_asked_again() -> None:
    """The other one is, after a pause; and its error is the one that is told."""
    wrong_key = BackendFailure("no key", reason="upstream_auth_failed")
    scene = Scene("a", "b", attempts=4).say("a", wrong_key).say("b", failure(), failure())
    assert scene.run() == b"b"
    assert scene.asked == ["a", "b", "b", "b"]
    told = failure()
    scene = Scene("a", "b").say("a", wrong_key).say("b", failure(), told)
    assert scene.run() is told


def test_open_breaker_is_no_try() -> None:
    """It costs no attempt, and its error is not the one told when another says more."""
    told = failure()
    scene = Scene("a", "b").say("a", *[CircuitOpen("x")] * 9).say("b", failure(), failure(), told)
    assert scene.run() is told
    assert scene.asked.count("b") == 3
    assert (scene.call.attempts, scene.call.backend) == (3, "b")


def test_all_breakers_open_is_an_answer_at_once() -> None:
    """With the last one's pause."""
    error = CircuitOpen("x", retry_after_s=3)
    scene = Scene("a", "b").say("a", CircuitOpen("x")).say("b", error)
    assert scene.run(until_s=0.02) is error
    assert scene.call.attempts == 0


def test_pause_of_the_upstream_wins() -> None:
    """To the moment, however long our own would be."""
    scene = Scene(base_s=0.5).say("a", busy(1.25))
    assert scene.run() == b"a"
    assert scene.at == pytest.approx([0, 1.25], abs=0.005)
    scene = Scene("a", "b").say("a", busy(2)).say("b", busy(1))
    assert scene.run() == b"a"
    assert scene.at == pytest.approx([0, 0, 2], abs=0.005)


def test_too_long_a_pause_is_told_instead() -> None:
    """The error has it, so that the client comes back then."""
    error = busy(23)
    scene = Scene().say("a", error)
    assert scene.run(until_s=0.02) is error
    assert scene.counter("tpo_retries_refused_total", "pause") == 1
    other = Scene("a", "b").say("a", busy(23)).say("b", failure())
    assert other.run() == b"b"
    assert other.asked == ["a", "b", "b"]


def test_deadline_is_never_overslept() -> None:
    """A pause that does not fit is not begun, and no try beyond it."""
    error = busy(2)
    scene = Scene(deadline_s=1.9).say("a", error)
    assert scene.run(until_s=0.02) is error
    assert scene.counter("tpo_retries_refused_total", "deadline") == 1
    assert Scene(deadline_s=2.1).say("a", busy(2)).run() == b"a"
    gone = Scene("a", "b", deadline_s=-0.1).say("a", failure())
    assert isinstance(gone.run(), BackendFailure)
    assert gone.asked == ["a"]


def test_client_that_leaves_ends_pause_and_try() -> None:
    """Nothing is asked any more; a reply that comes all the same is given up."""
    pausing = Scene().say("a", failure())
    promise = pausing.begin()
    assert len(pausing.world.filed) == 1
    promise.cancel()
    pausing.world.advance(10)
    assert pausing.asked == ["a"]
    assert isinstance(pausing.outcome[0][1], asyncio.CancelledError)
    asking = Scene().say("a", failure(), "hang")
    promise = asking.begin()
    asking.world.advance(1)
    promise.cancel()
    assert asking.asked == ["a", "a", "cancelled"]


def test_budget_is_one_for_all() -> None:
    """Without traffic only its floor; other workers' retries count, and so does time."""
    scene = Scene(budget_floor=2, budget=0.0).say("a", failure(), failure())
    assert scene.run() == b"a"
    other = Scene(budget_floor=2, budget=0.0)
    other.stage = FEATURE.build(msgspec.convert(other.options, Config), scene.world.env)
    other.world = scene.world
    error = failure()
    assert other.say("a", error).run() is error
    scene.world.now += 10
    again = other.say("a", failure())
    again.outcome.clear()
    again.call = make_call(b"{}")
    assert again.run() == b"a"


def test_failover_that_helps_is_free_and_in_vain_it_is_not() -> None:
    """A living second backend takes any number; two dead ones are soon asked once per call."""
    scene = Scene("a", "b", budget_floor=3, budget=0.1)
    answered = []
    for _ in range(50):
        scene.say("a", failure())
        scene.call = make_call(b"{}")
        scene.outcome.clear()
        answered.append(scene.run())
    assert answered == [b"b"] * 50
    dead = Scene("a", "b", budget_floor=3, budget=0.1, attempts=2)
    for _ in range(100):
        dead.say("a", failure()).say("b", failure())
        dead.call = make_call(b"{}")
        dead.outcome.clear()
        assert isinstance(dead.run(), BackendFailure)
        dead.scripts["b"].clear()
    assert 100 < len(dead.asked) <= 100 * 1.1 + 4
    assert dead.counter("tpo_retries_refused_total", "budget") > 80


def test_busy_ledger_lets_nothing_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the try is answered, not the ledger's."""
    scene = Scene().say("a", error := failure())

    def stuck(name: str, change: Callable[..., Any], *, crowd: bool = False) -> Any:
        raise Shed("held", reason="ledger_busy")

    monkeypatch.setattr(scene.world.env.ledger, "update", stuck)
    assert scene.run() is error


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("attempts = 0", "attempts = 0: expected int >= 1"),
        ("base_s = 2\nmax_s = 1", "base_s must not be more than max_s"),
        ("strategy = 'random'", "strategy"),
        ("budget = 1.5", "budget = 1.5: expected float <= 1"),
        ("atempts = 2", "attempts"),
    ],
)
def test_bad_config_names_the_place(tmp_path: Any, written: str, said: str) -> None:
    """Path, value, reason."""
    path = tmp_path / "c.toml"
    path.write_text(f"[stages.retry]\n{written}\n")
    with pytest.raises(ConfigError, match=r"stages\.retry") as caught:
        load.load(path, {}, {})
    assert said in caught.value.message


def test_other_spellings_are_read(tmp_path: Any) -> None:
    """Those of the reference documents, in milliseconds."""
    path = tmp_path / "c.toml"
    path.write_text("[resilience]\nretry_attempts = 4\nretry_base_ms = 50\nretry_max_ms = 900\n")
    retry: Any = load.load(path, {}, {}).stages["retry"]
    assert (retry.attempts, retry.base_s, retry.max_s) == (4, 0.05, 0.9)
