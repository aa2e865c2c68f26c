"""Tries under way: counted once, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.routed import RoutedHost, RoutedTarget
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.loads import Loads, counted, within_bound
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Reply


def answering(call: Call) -> Promise[Reply]:
    """A whole reply at once."""
    out: Promise[Reply] = Promise()
    out.resolve(Reply(200, b"{}"))
    return out


def failing(call: Call) -> Promise[Reply]:
    """A failure later."""
    out: Promise[Reply] = Promise()
    out.reject(BackendFailure("down"))
    return out


def refusing(call: Call) -> Promise[Reply]:
    """A failure at once."""
    raise BackendFailure("down")


async def slow(call: Call) -> Reply:
    """A coroutine."""
    await asyncio.sleep(0)
    return Reply(200, b"{}")


@pytest.mark.parametrize("serve", [answering, failing, refusing, slow])
def test_a_try_counts_while_it_lasts(serve: Callable[[Call], Awaitable[Reply]]) -> None:
    """And not afterwards, however it ended."""
    env = FakeWorld().env
    load = Loads(env.shares).of("b")
    during: list[int] = []

    def seen(call: Call) -> Awaitable[Reply]:
        during.append(load.total())
        return serve(call)

    async def main() -> None:
        with suppress(BackendFailure):
            await counted(seen, "b", env)(make_call(b"{}"))

    asyncio.run(main())
    assert during == [1]
    assert load.total() == 0


def test_a_bound_is_a_share_by_weight() -> None:
    """Of two thirds and one third; when all are beyond it, the least loaded for its weight."""
    host = RoutedHost("least_loaded")
    loads = Loads(host.shares)
    heavy, light = RoutedTarget("heavy", 2), RoutedTarget("light", 1)
    host.load(0, "heavy", 2)
    host.load(1, "light", 1)
    assert within_bound([heavy, light], loads, 1.25) is heavy
    host.load(1, "heavy", 8)
    assert within_bound([heavy, light], loads, 1.25) is light
    assert within_bound([heavy, light], loads, 0) is heavy
