"""The fold: order, short circuits, errors, and the two ends of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import HeldStream
from tpo_mp.errors import CircuitOpen, ConfigError, RateLimited, TpoError
from tpo_mp.pipeline.chain import Chain, check_order, fold
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.types import Call, Phase, Reply

Serve = Callable[[Call], Awaitable[Reply]]


class Trail:
    """Where a call has been; makes stages that leave their mark."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def sync(self, name: str, phase: Phase = Phase.ADMIT, **options: Any) -> Any:
        """A stage that never waits."""
        return _Sync(self, name, phase, **options)

    def waits(self, name: str, phase: Phase = Phase.ADMIT, **options: Any) -> Any:
        """A stage that may wait."""
        return _Async(self, name, phase, **options)

    def core(self, call: Call) -> Awaitable[Reply]:
        """The innermost function."""
        self.steps.append("core")
        out: Promise[Reply] = Promise()
        out.resolve(Reply(200, b"core"))
        return out


class _Sync:
    def __init__(
        self, trail: Trail, name: str, phase: Phase, answers: bool = False,
        error: Exception | None = None, after_error: Exception | None = None,
    ) -> None:  # fmt: skip
        self.phase = phase
        self._trail, self._name = trail, name
        self._answers, self._error, self._after_error = answers, error, after_error

    def before(self, call: Call) -> Reply | None:
        """On the way in."""
        self._trail.steps.append(f"+{self._name}")
        if self._error is not None:
            raise self._error
        return Reply(200, self._name.encode()) if self._answers else None

    def after(self, call: Call, reply: Reply) -> Reply | None:
        """On the way out."""
        self._trail.steps.append(f"-{self._name}")
        if self._after_error is not None:
            raise self._after_error
        return None


class _Async:
    def __init__(
        self, trail: Trail, name: str, phase: Phase, answers: bool = False, sleeps: bool = False
    ) -> None:
        self.phase = phase
        self._trail, self._name, self._answers, self._sleeps = trail, name, answers, sleeps

    async def __call__(self, call: Call, proceed: Serve) -> Reply:
        self._trail.steps.append(f"+{self._name}")
        if self._sleeps:
            await asyncio.sleep(0)
        if self._answers:
            return Reply(200, self._name.encode())
        try:
            return await proceed(call)
        finally:
            self._trail.steps.append(f"-{self._name}")


class _BeforeOnly:
    phase = Phase.RAG

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def before(self, call: Call) -> None:
        """On the way in."""
        self._trail.steps.append("+b")


class _AfterOnly:
    phase = Phase.RAG

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def after(self, call: Call, reply: Reply) -> Reply:
        """Another reply."""
        self._trail.steps.append("-a")
        return Reply(201, b"changed")


def drive(awaitable: Awaitable[Reply]) -> tuple[Reply | None, BaseException | None]:
    """Wait without a task; what needs a loop does not end here."""
    seen: list[Any] = []
    run(awaitable, lambda reply, error: seen.append((reply, error)))
    assert seen, "it waits"
    return seen[0]  # type: ignore[no-any-return]


def answer(serve: Serve) -> bytes:
    """The body of an answered call."""
    reply, error = drive(serve(make_call(b"")))
    assert error is None
    assert reply is not None
    return reply.body or b""


MIXES = ["sss", "aaa", "sas", "asa", "ssa", "ass", "aas", "saa"]


@pytest.mark.parametrize("mix", MIXES)
def test_order_is_the_lists_whatever_the_stages_are(mix: str) -> None:
    """In from the outside, out from the inside."""
    trail = Trail()
    kinds = {"s": trail.sync, "a": trail.waits}
    serve = fold([kinds[kind](str(i)) for i, kind in enumerate(mix)], trail.core)
    assert answer(serve) == b"core"
    assert trail.steps == ["+0", "+1", "+2", "core", "-2", "-1", "-0"]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_stage_that_answers_is_as_deep_as_it_goes(mix: str, at: int) -> None:
    """Nothing inside it runs in either direction; everything outside does."""
    trail = Trail()
    kinds = {"s": trail.sync, "a": trail.waits}
    stages = [kinds[kind](str(i), answers=i == at) for i, kind in enumerate(mix)]
    assert answer(fold(stages, trail.core)) == str(at).encode()
    assert trail.steps == [f"+{i}" for i in range(at + 1)] + [f"-{i}" for i in reversed(range(at))]


def test_halves_of_a_stage_are_stages() -> None:
    """``before`` alone and ``after`` alone; an ``after`` may answer another reply."""
    trail = Trail()
    serve = fold([_AfterOnly(trail), _BeforeOnly(trail), _AfterOnly(trail)], trail.core)
    assert answer(serve) == b"changed"
    assert trail.steps == ["+b", "core", "-a", "-a"]


def test_no_stages_cost_nothing() -> None:
    """The fold of nothing is the core itself."""
    trail = Trail()
    assert fold([], trail.core) == trail.core


@pytest.mark.parametrize("outer", ["sync", "waits"])
def test_error_on_the_way_in_ends_the_call(outer: str) -> None:
    """Sync stages see replies only; what is inside is never reached."""
    trail = Trail()
    error = RateLimited("no")
    stages = [getattr(trail, outer)("0"), trail.sync("1", error=error), trail.sync("2")]
    seen: list[Any] = []
    try:
        run(fold(stages, trail.core)(make_call(b"")), lambda r, e: seen.append(e))
    except TpoError as e:
        seen.append(e)
    assert seen == [error]
    assert "core" not in trail.steps
    assert "+2" not in trail.steps


def test_error_of_an_after_becomes_the_calls() -> None:
    """A guard that refuses an answer; a stream it refuses is let go."""
    trail = Trail()
    error = RateLimited("not this answer")
    held = HeldStream()

    def core(call: Call) -> Awaitable[Reply]:
        out: Promise[Reply] = Promise()
        out.resolve(Reply(200, None, stream=held))
        return out

    stages = [trail.sync("0"), trail.sync("1", after_error=error)]
    assert drive(fold(stages, core)(make_call(b""))) == (None, error)
    assert trail.steps == ["+0", "+1", "-1"]
    assert held.told == ["cancel"]


def test_error_of_the_core_passes_every_stage() -> None:
    """Synchronous stages see replies only, asynchronous ones may catch."""
    trail = Trail()
    error = CircuitOpen("no")

    def core(call: Call) -> Awaitable[Reply]:
        out: Promise[Reply] = Promise()
        out.reject(error)
        return out

    serve = fold([trail.sync("0"), trail.waits("1"), trail.sync("2")], core)
    assert drive(serve(make_call(b""))) == (None, error)
    assert trail.steps == ["+0", "+1", "+2", "-1"]


def test_stages_that_wait_on_asyncio_fit_between_synchronous_ones() -> None:
    """The order holds over turns of the loop."""
    trail = Trail()
    serve = fold([trail.sync("0"), trail.waits("1", sleeps=True), trail.sync("2")], trail.core)

    async def main() -> bytes | None:
        return (await serve(make_call(b""))).body

    assert asyncio.run(main()) == b"core"
    assert trail.steps == ["+0", "+1", "+2", "core", "-2", "-1", "-0"]


def test_call_given_up_reaches_the_core() -> None:
    """Cancelling the outermost promise cancels what the innermost waits for."""
    cancelled: list[bool] = []
    inner: Promise[Reply] = Promise(lambda: cancelled.append(True))
    trail = Trail()
    stages = [trail.sync("0"), trail.waits("1"), trail.sync("2")]
    seen: list[Any] = []
    give_up = run(fold(stages, lambda call: inner)(make_call(b"")), lambda r, e: seen.append(e))
    assert give_up is not None
    give_up()
    assert cancelled == [True]
    assert [type(e) for e in seen] == [asyncio.CancelledError]


def test_reply_that_comes_too_late_is_let_go() -> None:
    """Somebody inside swallowed the cancellation: its stream must not run on."""
    inner: Promise[Reply] = Promise()
    later: Promise[Reply] = Promise()

    async def stubborn(call: Call) -> Reply:
        try:
            return await inner
        except asyncio.CancelledError:
            return await later

    held = HeldStream()
    trail = Trail()
    out = fold([trail.sync("0")], stubborn)(make_call(b""))
    assert isinstance(out, Promise)
    out.cancel()
    later.resolve(Reply(200, None, stream=held))
    assert held.told == ["cancel"]
    assert trail.steps == ["+0"]


# -- phases -----------------------------------------------------------------------------------

IN = [Phase.ADMIT, Phase.RAG, Phase.STREAM, Phase.POST_PROCESS, Phase.ASSEMBLE, Phase.INFERENCE]


class _Way(_BeforeOnly):
    """One stage per phase; those of the way out do nothing on the way in."""

    def __init__(self, trail: Trail, phase: Phase) -> None:
        super().__init__(trail)
        self.phase = phase  # type: ignore[misc]

    def before(self, call: Call) -> None:
        """On the way in."""
        if self.phase not in (Phase.STREAM, Phase.POST_PROCESS):
            self._trail.steps.append(self.phase.name)

    def after(self, call: Call, reply: Reply) -> None:
        """On the way out."""
        if self.phase in (Phase.POST_PROCESS, Phase.STREAM, Phase.RAG, Phase.ADMIT):
            self._trail.steps.append(self.phase.name)


def tries(core: Serve, n: int) -> Callable[[Sequence[Any]], Serve]:
    """A route that asks one backend until the last of ``n`` tries."""

    def route(attempt: Sequence[Any]) -> Serve:
        once = fold(attempt, core)

        async def serve(call: Call) -> Reply:
            for _ in range(n - 1):
                await once(call)
            return await once(call)

        return serve

    return route


def test_phases_are_met_as_they_nest() -> None:
    """In: admit, rag, assemble, inference, attempt; out: post process, stream, rag, admit."""
    trail = Trail()
    stages = [(phase.name.lower(), _Way(trail, phase)) for phase in Phase]
    chain = Chain(stages, tries(trail.core, 1), epoch=7)
    assert answer(chain.admit(chain.serve)) == b"core"
    assert trail.steps == [
        "ADMIT", "RAG", "ASSEMBLE", "INFERENCE", "ATTEMPT", "core",
        "POST_PROCESS", "STREAM", "RAG", "ADMIT",
    ]  # fmt: skip
    assert (chain.epoch, chain.names) == (7, tuple(p.name.lower() for p in Phase))


def test_attempt_wraps_each_try_and_the_rest_the_call() -> None:
    """A breaker counts every try, a cache one call."""
    trail = Trail()
    stages = [
        ("cache", trail.sync("inference", Phase.INFERENCE)),
        ("breaker", trail.sync("attempt", Phase.ATTEMPT)),
    ]
    chain = Chain(stages, tries(trail.core, 3))
    answer(chain.serve)
    attempt = ["+attempt", "core", "-attempt"]
    assert trail.steps == ["+inference", *attempt * 3, "-inference"]


def test_admission_is_cut_from_the_rest() -> None:
    """What is admitted here may be served elsewhere."""
    trail = Trail()
    stages = [("auth", trail.sync("admit")), ("rag", trail.sync("rag", Phase.RAG))]
    chain = Chain(stages, tries(trail.core, 1))
    answer(chain.admit(trail.core))
    assert trail.steps == ["+admit", "core", "-admit"]
    trail.steps.clear()
    answer(chain.serve)
    assert trail.steps == ["+rag", "core", "-rag"]


@pytest.mark.parametrize("outer", IN)
@pytest.mark.parametrize("inner", IN)
def test_list_must_follow_the_phases(outer: Phase, inner: Phase) -> None:
    """A contradiction is an error that names both; nothing is sorted in silence."""
    trail = Trail()
    stages = [("first", trail.sync("a", outer)), ("second", trail.sync("b", inner))]
    if outer <= inner:
        check_order(stages)
        return
    with pytest.raises(ConfigError, match=r"'second' \(\w+\) must come before 'first'"):
        Chain(stages, tries(trail.core, 1))


def test_no_stage_twice() -> None:
    """A name is one stage."""
    trail = Trail()
    with pytest.raises(ConfigError, match="'retry' is listed twice"):
        check_order([("retry", trail.sync("a")), ("retry", trail.sync("b"))])
