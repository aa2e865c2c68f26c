"""Promises, and coroutines driven without a task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tpo_mp.pipeline.promise import Promise, run


class Ends:
    """What ``run`` told, in order."""

    def __init__(self) -> None:
        self._told: list[Any] = []

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self._told.append(value if error is None else error)

    def __eq__(self, other: object) -> bool:
        return self._told == other

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._told)

    def __getitem__(self, at: int) -> Any:
        return self._told[at]


def start(awaitable: Awaitable[Any]) -> tuple[Ends, Callable[[], object] | None]:
    """Drive an awaitable."""
    ends = Ends()
    return ends, run(awaitable, ends)


def test_first_outcome_counts() -> None:
    """A second value or error is nobody's."""
    promise: Promise[int] = Promise()
    ends = Ends()
    promise.then(ends)
    promise.resolve(1)
    promise.resolve(2)
    promise.reject(ValueError())
    assert ends == [1]
    assert promise.result() == 1


def test_everybody_who_waits_is_told_once_in_order() -> None:
    """Before and after it is known."""
    promise: Promise[int] = Promise()
    seen: list[int] = []
    for i in range(3):
        promise.then(lambda value, error, i=i: seen.append(i))  # type: ignore[misc]
    promise.reject(ValueError("no"))
    promise.then(lambda value, error: seen.append(9))
    assert seen == [0, 1, 2, 9]
    with pytest.raises(ValueError, match="no"):
        promise.result()


def test_cancelling_tells_the_worker_and_the_waiter() -> None:
    """Once; an outcome that is known stays."""
    told: list[bool] = []
    promise: Promise[int] = Promise(lambda: told.append(True))
    ends = Ends()
    promise.then(ends)
    assert promise.cancel()
    assert not promise.cancel()
    assert told == [True]
    assert isinstance(ends[0], asyncio.CancelledError)
    known: Promise[int] = Promise(lambda: told.append(True))
    known.resolve(1)
    assert not known.cancel()
    assert told == [True]


def test_coroutine_runs_without_a_loop_and_in_the_callers_stack() -> None:
    """Nothing waits, so it is over when ``run`` returns."""

    async def inner() -> int:
        return 1

    async def outer() -> int:
        return await inner() + 1

    ends, cancel = start(outer())
    assert ends == [2]
    assert cancel is None


def test_coroutine_goes_on_in_the_resolvers_stack() -> None:
    """As often as it waits, still without a loop."""
    promises: list[Promise[int]] = [Promise() for _ in range(3)]

    async def add() -> int:
        return sum([await p for p in promises])

    ends, cancel = start(add())
    assert cancel is not None
    for i in (2, 0, 1):
        assert ends == []
        promises[i].resolve(i)
    assert ends == [3]
    cancel()
    assert ends == [3]


def test_errors_are_thrown_where_it_waits() -> None:
    """And may be caught there."""
    promise: Promise[int] = Promise()

    async def careful() -> str:
        try:
            await promise
        except ValueError as e:
            return f"caught {e}"
        return "nothing"

    ends, _ = start(careful())
    promise.reject(ValueError("it"))
    assert ends == ["caught it"]
    done = Promise[int]()
    done.reject(KeyError("k"))

    async def careless() -> None:
        await done

    assert isinstance(start(careless())[0][0], KeyError)


def test_cancelling_throws_where_it_waits() -> None:
    """Clean-up runs at once, and the worker is told."""
    told: list[str] = []
    promise: Promise[int] = Promise(lambda: told.append("worker"))

    async def work() -> None:
        try:
            await promise
        finally:
            told.append("clean-up")

    ends, cancel = start(work())
    assert cancel is not None
    cancel()
    assert told == ["worker", "clean-up"]
    assert isinstance(ends[0], asyncio.CancelledError)


def test_promise_is_run_without_a_coroutine() -> None:
    """Known or not."""
    known: Promise[int] = Promise()
    known.resolve(1)
    assert start(known) == ([1], None)
    unknown: Promise[int] = Promise()
    ends, cancel = start(unknown)
    assert cancel is not None
    cancel()
    assert isinstance(ends[0], asyncio.CancelledError)


def test_other_awaitables_are_run_too() -> None:
    """Anything with ``__await__``."""

    class Own:
        def __await__(self) -> Any:
            return (yield from asyncio.sleep(0, 5).__await__())

    async def main() -> Ends:
        ends, _ = start(Own())
        assert ends == []
        for _ in range(5):
            await asyncio.sleep(0)
        return ends

    assert asyncio.run(main()) == [5]


def test_asyncio_futures_are_adopted_in_mid_run() -> None:
    """It becomes a task where it first needs one, and goes on through promises and futures."""

    async def main() -> Ends:
        loop = asyncio.get_running_loop()
        first: Promise[int] = Promise()
        second: asyncio.Future[int] = loop.create_future()
        third: Promise[int] = Promise()

        async def work() -> tuple[int, ...]:
            a = await first
            b = await second
            await asyncio.sleep(0)
            async with asyncio.timeout(50):
                c = await third
            return a, b, c

        ends, _ = start(work())
        first.resolve(1)
        await asyncio.sleep(0)
        second.set_result(2)
        for _ in range(4):
            await asyncio.sleep(0)
        third.resolve(3)
        for _ in range(4):
            await asyncio.sleep(0)
        return ends

    assert asyncio.run(main()) == [(1, 2, 3)]


@pytest.mark.parametrize("how", ["raise", "reject", "future"])
def test_errors_pass_out_of_an_adopted_coroutine(how: str) -> None:
    """Its own, a promise's and a future's."""

    async def main() -> Ends:
        promise: Promise[int] = Promise()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await asyncio.sleep(0)
            if how == "raise":
                raise ValueError("x")
            await (promise if how == "reject" else future)

        ends, _ = start(work())
        for _ in range(4):
            await asyncio.sleep(0)
        promise.reject(ValueError("x"))
        future.set_exception(ValueError("x"))
        if how != "future":
            future.exception()
        for _ in range(4):
            await asyncio.sleep(0)
        return ends

    assert isinstance(asyncio.run(main())[0], ValueError)


@pytest.mark.parametrize("waits_for", ["future", "promise", "nothing yet"])
def test_adopted_coroutine_is_cancelled_where_it_waits(waits_for: str) -> None:
    """In any of its lives; its clean-up runs."""

    async def main() -> tuple[Ends, list[str]]:
        told: list[str] = []
        promise: Promise[int] = Promise(lambda: told.append("worker"))
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await asyncio.sleep(0)
                await (promise if waits_for == "promise" else never)
            finally:
                told.append("clean-up")

        ends, cancel = start(work())
        assert cancel is not None
        if waits_for != "nothing yet":
            for _ in range(3):
                await asyncio.sleep(0)
        cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert never.cancelled() == (waits_for == "future")
        return ends, told

    ends, told = asyncio.run(main())
    assert [type(e) for e in ends] == [asyncio.CancelledError]
    assert told == (["worker"] if waits_for == "promise" else []) + ["clean-up"]


def test_tasks_and_futures_are_run_as_they_are() -> None:
    """No second task is wrapped round one that exists."""

    async def main() -> None:
        async def give(value: int) -> int:
            await asyncio.sleep(0)
            return value

        before = len(asyncio.all_tasks())
        task = asyncio.create_task(give(4))
        ends, cancel = start(task)
        assert len(asyncio.all_tasks()) == before + 1
        assert cancel is not None
        await task
        await asyncio.sleep(0)
        assert ends == [4]
        forever: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ends, cancel = start(forever)
        assert cancel is not None
        cancel()
        await asyncio.sleep(0)
        assert isinstance(ends[0], asyncio.CancelledError)

    asyncio.run(main())


def test_promise_is_awaited_inside_a_task() -> None:
    """Like a future: value, error, cancellation, several waiters."""

    async def main() -> None:
        told: list[bool] = []
        promise: Promise[int] = Promise(lambda: told.append(True))

        async def wait() -> int:
            return await promise

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        promise.resolve(7)
        assert await asyncio.gather(*tasks) == [7, 7, 7]
        assert await promise == 7

        failing: Promise[int] = Promise()
        asyncio.get_running_loop().call_soon(failing.reject, ValueError("x"))
        with pytest.raises(ValueError, match="x"):
            await failing

        slow: Promise[int] = Promise(lambda: told.append(True))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await slow
        assert told == [True]
        assert slow.done

    asyncio.run(main())


def test_many_waits_do_not_deepen_the_stack() -> None:
    """A coroutine that meets ten thousand known promises is a loop, not a recursion."""

    async def count() -> int:
        total = 0
        for _ in range(10_000):
            promise: Promise[int] = Promise()
            promise.resolve(1)
            total += await promise
        return total

    assert start(count())[0] == [10_000]
