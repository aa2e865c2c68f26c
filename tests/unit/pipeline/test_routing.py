"""From a model to one try of one backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.wait import until
from tpo_mp.errors import BackendRefused, CircuitOpen, NotFound
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.routing import Router, Rule, Target, guards_of, wrap
from tpo_mp.types import Call, Phase, Reply


class Named:
    """A backend that answers with its name, or refuses."""

    def __init__(self, name: str, refuses: bool = False) -> None:
        self.name = name
        self._refuses = refuses

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer at once."""
        said: Promise[Reply] = Promise()
        if self._refuses:
            said.reject(BackendRefused(self.name))
        else:
            said.resolve(Reply(200, self.name.encode()))
        return said


class Last:
    """A route that only chooses."""

    def pick(self, call: Call, targets: Sequence[Target]) -> Target:
        """The last one."""
        return targets[-1]


class EachInTurn:
    """A route that may ask several."""

    async def __call__(self, call: Call, targets: Sequence[Target]) -> Reply:
        for target in targets[:-1]:
            try:
                return await target.infer(call)
            except BackendRefused:
                continue
        return await targets[-1].infer(call)


def target(name: str, *models: str, backend: Any = None, **model_map: str) -> Target:
    """A backend in a route."""
    backend = backend or Named(name)
    return Target(name, backend, models or ("*",), model_map, (), 1, wrap(backend, []))


def ask(router: Router, model: str) -> tuple[bytes, Call]:
    """Ask for a model; answer the body and the call."""
    call = make_call(b"{}", model=model)
    seen: list[Any] = []
    run(router.serve(call), lambda reply, error: seen.append((reply, error)))
    reply, error = seen[0]
    if error is not None:
        raise error
    return reply.body, call


def test_first_rule_that_matches_and_can_serve_wins() -> None:
    """A rule whose backends do not serve the model is passed over."""
    a, b, c = target("a", "gpt-*"), target("b", "claude-*"), target("c")
    router = Router(
        [Rule(("gpt-4o", "claude-*"), Last(), (a,)), Rule(("*",), Last(), (b,)),
         Rule(("*",), Last(), (c,))]
    )  # fmt: skip
    assert ask(router, "gpt-4o")[0] == b"a"
    assert ask(router, "claude-3")[0] == b"b"
    assert ask(router, "gpt-3")[0] == b"c"


def test_mapped_names_are_served_too() -> None:
    """A public name with an upstream name is as good as a listed one."""
    router = Router([Rule(("*",), Last(), (target("a", "llama", fast="llama"),))])
    assert ask(router, "fast")[0] == b"a"
    with pytest.raises(NotFound):
        ask(router, "other")


@pytest.mark.parametrize("model", ["nothing", "", "x" * 10_000, "a[b", "[", "Ä"])
def test_model_nobody_serves_is_not_found(model: str) -> None:
    """Whatever it is called, and the message stays short."""
    router = Router([Rule(("*",), Last(), (target("a", "gpt-*"),))])
    with pytest.raises(NotFound) as refused:
        router.serve(make_call(b"", model=model))
    assert (refused.value.reason, refused.value.param) == ("model_not_found", "model")
    assert len(refused.value.message) < 250
    assert not router.knows(model)


def test_each_try_is_noted_on_the_call() -> None:
    """Who was asked last, and how often anybody was."""
    first = target("first", backend=Named("first", refuses=True))
    router = Router([Rule(("*",), EachInTurn(), (first, target("second")))])
    body, call = ask(router, "any")
    assert body == b"second"
    assert (call.backend, call.attempts) == ("second", 2)


def test_route_sees_only_backends_that_serve_the_model() -> None:
    """It cannot choose wrong."""
    seen: list[list[str]] = []

    class Looks(Last):
        """Notes what it is handed."""

        def pick(self, call: Call, targets: Sequence[Target]) -> Target:
            """Look, then choose."""
            seen.append([t.name for t in targets])
            return super().pick(call, targets)

    router = Router([Rule(("*",), Looks(), (target("a", "x"), target("b", "x"), target("c", "y")))])
    assert ask(router, "x")[0] == b"b"
    assert ask(router, "y")[0] == b"c"
    assert seen == [["a", "b"]]


def test_decisions_are_remembered_within_bounds() -> None:
    """Thousands of invented names do not grow the table."""
    router = Router([Rule(("*",), Last(), (target("a"),))])
    for i in range(5000):
        assert router.knows(f"model-{i}")
    assert len(router._known) <= 4096
    assert ask(router, "model-1")[0] == b"a"


def test_attempt_stages_wrap_every_try() -> None:
    """Each backend has its own wrapped function, the stage is one."""
    seen: list[str] = []

    class Counts:
        """An ATTEMPT stage."""

        phase = Phase.ATTEMPT

        def before(self, call: Call) -> None:
            """Count."""
            seen.append(call.backend)

    stage = Counts()
    first = Named("first", refuses=True)
    targets = tuple(
        Target(b.name, b, ("*",), {}, (), 1, wrap(b, [stage])) for b in (first, Named("second"))
    )
    ask(Router([Rule(("*",), EachInTurn(), targets)]), "any")
    assert seen == ["first", "second"]


def test_whoever_loses_a_permit_to_another_process_goes_elsewhere() -> None:
    """The route saw it free; by the time of the try it was not.  With nobody left it says so."""

    class Guard:
        """An ATTEMPT stage: one backend may be tried once more, and somebody else is quicker."""

        phase = Phase.ATTEMPT

        def __init__(self) -> None:
            self.shut: set[str] = set()

        def before(self, call: Call) -> None:
            """Refuse."""
            if call.backend == "second" or call.backend in self.shut:
                self.shut.add(call.backend)
                raise CircuitOpen("open")

        def blocked(self, call: Call, backend: str) -> bool:
            """Whether it was shut at the last look."""
            return backend in self.shut

    guard = Guard()
    targets = tuple(
        Target(n, Named(n), ("*",), {}, (), 1, wrap(Named(n), [guard]), guards_of([guard]))
        for n in ("first", "second")
    )
    router = Router([Rule(("*",), Last(), targets)])
    body, call = ask(router, "any")
    assert (body, call.backend, call.attempts) == (b"first", "first", 1)
    guard.shut |= {"first"}
    with pytest.raises(CircuitOpen):
        ask(router, "any")


def test_coroutine_backend_has_a_task_of_its_own() -> None:
    """Clients written for asyncio use timeouts, which need one; cancelling reaches them."""
    ends: list[str] = []

    class Client:
        """Written for asyncio."""

        async def infer(self, call: Call) -> Reply:
            """Wait under a timeout from the first line on."""
            try:
                async with asyncio.timeout(50):
                    await asyncio.sleep(0 if call.model == "quick" else 60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
            return Reply(200, b"async")

    async def main() -> None:
        serve = wrap(Client(), [])
        seen: list[Any] = []
        run(serve(make_call(b"", model="quick")), lambda r, e: seen.append(r.body))
        cancel = run(serve(make_call(b"", model="slow")), lambda r, e: seen.append(type(e)))
        assert cancel is not None
        await until(lambda: len(seen) == 1, what="the quick one's answer")
        cancel()
        await until(lambda: len(seen) == 2, what="the slow one's end")
        assert seen == [b"async", asyncio.CancelledError]

    asyncio.run(main())
    assert ends == ["cancelled"]
