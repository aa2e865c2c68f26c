"""A value that will exist, and the cheapest way to wait for it.

``Promise`` may be awaited inside an asyncio task like a future, or driven without any task:
``run`` steps a coroutine by hand and resumes it straight from the callback that resolved what it
waits for.  A request that needs no timer and no task therefore costs neither.

Whoever works on a value holds its promise, and the promise holds how to cancel the work: a circle
that ends with the outcome, so that a call leaves nothing for the garbage collector.

Invariants: ``then`` callbacks run once, in the resolver's stack; callbacks added by asyncio run
through the loop, because a task must not step inside another task's step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Done = Callable[[Any, "BaseException | None"], object]


class Promise(Generic[T]):
    """One value or one error, told to whoever waits."""

    __slots__ = ("_asyncio_future_blocking", "_then", "cancel_with", "done", "error", "value")

    def __init__(self, cancel_with: Callable[[], object] | None = None) -> None:
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.cancel_with = cancel_with
        self._then: list[Done] | Done | None = None
        self._asyncio_future_blocking = False

    def resolve(self, value: T) -> None:
        """Give the value; a second outcome is ignored."""
        if not self.done:
            self.done = True
            self.value = value
            self.cancel_with = None
            then = self._then
            if then is not None:
                self._then = None
                if type(then) is list:
                    for callback in then:
                        callback(value, None)
                else:
                    then(value, None)  # type: ignore[operator]  # the other of the two

    def reject(self, error: BaseException) -> None:
        """Give the error instead."""
        if not self.done:
            self.done = True
            self.error = error
            self.cancel_with = None
            then = self._then
            if then is not None:
                self._then = None
                if type(then) is list:
                    for callback in then:
                        callback(None, error)
                else:
                    then(None, error)  # type: ignore[operator]  # the other of the two

    def then(self, callback: Done) -> None:
        """Call ``callback(value, error)`` now or once known."""
        then = self._then
        if self.done:
            callback(self.value, self.error)
        elif then is None:
            self._then = callback
        elif type(then) is list:
            then.append(callback)
        else:
            self._then = [then, callback]  # type: ignore[list-item]  # the other of the two

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - asyncio's signature
        """Give up waiting; what works on the value is told through ``cancel_with``."""
        if self.done:
            return False
        if self.cancel_with is not None:
            self.cancel_with()
        self.reject(asyncio.CancelledError())
        return True

    # What asyncio.Task asks of anything it waits for.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def add_done_callback(
        self, callback: Callable[[Any], Any], *, context: Context | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.then(lambda _v, _e: loop.call_soon(callback, self, context=context))

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # done without error means it is set

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()


class _Run:
    """Steps one coroutine without a task; becomes one only when it meets asyncio's own futures."""

    __slots__ = ("_coro", "_done", "_task", "_waits", "finished")

    def __init__(self, coro: Coroutine[Any, Any, Any], done: Done) -> None:
        self._coro = coro
        self._done = done
        self._waits: Promise[Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self.finished = False

    def step(self) -> None:
        """Run to the next wait, or to the end."""
        self._waits = None
        value: Any = None
        error: BaseException | None = None
        try:
            waits = self._coro.send(None)
        except StopIteration as stop:
            value = stop.value
            self.finished = True
        except BaseException as e:  # noqa: BLE001 - it belongs to whoever waits
            error = e
            self.finished = True
        if self.finished:
            self._done(value, error)
        elif type(waits) is Promise:
            waits._asyncio_future_blocking = False
            self._waits = waits
            waits.then(self._again)
        else:
            self._task = asyncio.get_running_loop().create_task(_adopt(self._coro, waits))
            self._task.add_done_callback(self._task_done)

    def _again(self, _value: Any, _error: BaseException | None) -> None:
        # The awaiting coroutine reads value or error from the promise itself.
        if not self.finished:
            self.step()

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self.finished = True
        self._done(*_outcome(task))

    def cancel(self) -> None:
        """Throw ``CancelledError`` where the coroutine waits."""
        if self.finished:
            return
        if self._task is not None:
            self._task.cancel()
        elif self._waits is not None:
            self._waits.cancel()


class _Adopted:
    """Continues a started coroutine inside a task, from the future it already waits for."""

    __slots__ = ("_coro", "_waits")

    def __init__(self, coro: Coroutine[Any, Any, Any], waits: Any) -> None:
        self._coro = coro
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, Any]:
        waits = self._waits
        while True:
            got: Any = None
            thrown: BaseException | None = None
            try:
                got = yield waits
            except BaseException as e:  # noqa: BLE001 - handed on to the coroutine
                thrown = e
            try:
                waits = self._coro.send(got) if thrown is None else self._coro.throw(thrown)
            except StopIteration as stop:
                return stop.value


async def _adopt(coro: Coroutine[Any, Any, Any], waits: Any) -> Any:
    return await _Adopted(coro, waits)


def run(awaitable: Awaitable[Any], done: Done) -> Callable[[], object] | None:
    """Wait for ``awaitable`` without a task; ``done(value, error)`` may run before this returns.

    Answers a function that cancels the wait, or ``None`` when it is over already.
    """
    if type(awaitable) is Promise:
        awaitable.then(done)
        return None if awaitable.done else awaitable.cancel
    if isinstance(awaitable, asyncio.Future):
        awaitable.add_done_callback(lambda future: done(*_outcome(future)))
        return awaitable.cancel
    if asyncio.iscoroutine(awaitable):
        step = _Run(awaitable, done)
    else:
        step = _Run(_as_coroutine(awaitable), done)
    step.step()
    return None if step.finished else step.cancel


def _outcome(future: asyncio.Future[Any]) -> tuple[Any, BaseException | None]:
    if future.cancelled():
        return None, asyncio.CancelledError()
    error = future.exception()
    return (None if error else future.result()), error


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
