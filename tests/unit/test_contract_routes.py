"""Every route, whatever it prefers: each call is answered by a backend it was handed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from tests.support import contract
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp import registry
from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.pipeline.promise import Promise
from tpo_mp.pipeline.routing import Router, Rule, Target
from tpo_mp.types import Call, Reply

NAMES = contract.names("routes")


class Answers:
    """A backend's try: answers with its name, or fails."""

    def __init__(self, name: str, error: TpoError | None = None) -> None:
        self.name = name
        self._error = error
        self.asked = 0

    def __call__(self, call: Call) -> Awaitable[Reply]:
        self.asked += 1
        out: Promise[Reply] = Promise()
        if self._error is not None:
            out.reject(self._error)
        else:
            out.resolve(Reply(200, self.name.encode()))
        return out


def targets(*weights: int, error: TpoError | None = None) -> tuple[Target, ...]:
    """Backends of the given weights."""
    return tuple(
        Target(f"b{i}", None, ("*",), {}, (), weight, Answers(f"b{i}", error))
        for i, weight in enumerate(weights)
    )


def make(name: str, among: Sequence[Target]) -> Router:
    """A router over one rule with this strategy."""
    found = registry.find("routes", name)
    rules = [r for r in contract.full().routes if r.strategy == name and r.options is not None]
    options = rules[0].options if rules else found.Config()
    return Router([Rule(("*",), found.build(options, FakeWorld().env), tuple(among))])


def ask(router: Router, n: int, **fields: Any) -> list[str]:
    """Who answered each of ``n`` calls."""

    async def one() -> str:
        call = make_call(b"{}", model="m", **fields)
        reply = await router.serve(call)
        assert call.attempts >= 1
        assert reply.body is not None
        assert call.backend == reply.body.decode()
        return call.backend

    async def main() -> list[str]:
        return list(await asyncio.gather(*(one() for _ in range(n))))

    return asyncio.run(main())


@pytest.mark.parametrize("name", NAMES)
def test_options_are_strict_and_described(name: str) -> None:
    """They stand beside the strategy in ``[[routes]]``."""
    contract.check_options(registry.find("routes", name).Config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [(1,), (1, 1), (5, 1, 1), (1000, 1)])
def test_each_call_is_answered_by_a_backend_it_was_handed(
    name: str, weights: tuple[int, ...]
) -> None:
    """One or many."""
    among = targets(*weights)
    answered = ask(make(name, among), 50)
    assert set(answered) <= {t.name for t in among}
    assert len(answered) == 50


@pytest.mark.parametrize("name", NAMES)
def test_tried_backends_are_left_for_others(name: str) -> None:
    """A retry goes elsewhere while there is an elsewhere, and somewhere when there is none."""
    among = targets(1, 1, 1)
    assert set(ask(make(name, among), 20, tried={"b0", "b2"})) == {"b1"}
    assert len(ask(make(name, among), 5, tried={"b0", "b1", "b2"})) == 5


@pytest.mark.parametrize("name", NAMES)
def test_failure_of_every_backend_gets_out(name: str) -> None:
    """As the failure it is."""
    router = make(name, targets(1, 1, error=BackendFailure("down")))
    with pytest.raises(BackendFailure):
        ask(router, 1)


@pytest.mark.parametrize("name", NAMES)
def test_two_of_a_kind_do_not_disturb_each_other(name: str) -> None:
    """Each rule has its own."""
    among = targets(3, 1)
    alone = ask(make(name, among), 8)
    first, second = make(name, among), make(name, among)
    both = [(ask(first, 1)[0], ask(second, 1)[0]) for _ in range(8)]
    assert sorted(a for a, _ in both) == sorted(b for _, b in both) == sorted(alone)
