"""A try that holds a place at its backend, from its turn until its reply is complete.

Invariants: the place is given back once, however the try ends: it is not begun, fails, answers as a
whole, or its stream ends or is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tpo_mp.errors import TpoError
from tpo_mp.ports import Proceed
from tpo_mp.types import Call, Reply

from .endings import when_over
from .place_limit import PlaceLimit
from .promise import Done, Promise, run


class Left(Protocol):
    """What a try is counted at; ``auto`` measures how long it takes, where somebody does."""

    @property
    def auto(self) -> PlaceLimit | None: ...

    def leave(self) -> None:
        """The try is over."""


def leaving(door: Left) -> Done:
    """What gives back the places of tries that nobody measures; one does for all of them."""
    return _Leaving(door).answered


def through(
    door: Left, call: Call, proceed: Proceed, clock: Callable[[], float], gone: Done | None = None
) -> Promise[Reply]:
    """One try that has its place, which is given back when it is over.

    ``gone`` is what ``leaving`` made for this door, if the caller has it.
    """
    auto = door.auto
    if auto is None or auto.idle:
        answered = gone or leaving(door)
    else:
        answered = _Measured(door, clock, call.stream).answered
    try:
        trying = proceed(call)
    except BaseException:
        door.leave()
        raise
    if isinstance(trying, Promise):
        trying.then(answered)
        return trying
    out: Promise[Reply] = Promise()
    out.then(answered)
    cancel = run(trying, Passing(out))
    if not out.done:
        out.cancel_with = cancel
    return out


class Passing:
    """Hands an outcome on; a stream that comes when nobody waits any more is cancelled."""

    __slots__ = ("_out",)

    def __init__(self, out: Promise[Reply]) -> None:
        self._out = out

    def __call__(self, reply: Reply | None, error: BaseException | None) -> None:
        if reply is None:
            self._out.reject(error or RuntimeError("a backend answered nothing"))
        elif not self._out.done:
            self._out.resolve(reply)
        elif reply.stream is not None:
            reply.stream.cancel()


class _Leaving:
    """Gives a place back when a try is over."""

    __slots__ = ("_door",)

    def __init__(self, door: Left) -> None:
        self._door = door

    def answered(self, reply: Reply | None, error: BaseException | None) -> None:
        """The try failed, or began to answer."""
        if reply is None:
            auto = self._door.auto
            if auto is not None and auto.idle:
                auto.failed(error, 0.0, stream=False)
            self._door.leave()
        elif reply.stream is None:
            self._door.leave()
        else:
            when_over(reply, self._over)

    def _over(self, error: TpoError | None) -> None:  # noqa: ARG002
        self._door.leave()


class _Measured(_Leaving):
    """The same, and tells how long the backend took."""

    __slots__ = ("_clock", "_since", "_stream")

    def __init__(self, door: Left, clock: Callable[[], float], stream: bool) -> None:
        super().__init__(door)
        self._clock = clock
        self._since = clock()
        self._stream = stream

    def answered(self, reply: Reply | None, error: BaseException | None) -> None:
        """It failed, or began to answer: until then it is the backend's time."""
        auto = self._door.auto
        if auto is not None and not auto.idle:
            took_s = self._clock() - self._since
            if reply is None:
                auto.failed(error, took_s, stream=self._stream)
            elif reply.stream is None:
                auto.whole(took_s)
            else:
                auto.first(took_s)
        super().answered(reply, error)
