"""Tells stages how what they began has ended: a whole call, or one reply of a backend.

What a stage takes for a call (a reservation, a place, a lease) it gives back when told.

Invariants: who asked is told exactly once, however the call ends, but for the death of the process;
a defect in one that is told does not keep the others from hearing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from tpo_mp.errors import Cancelled, TpoError
from tpo_mp.types import Aside, Call, Ending, Reply, Sink, Stream, Terminal, Usage

if TYPE_CHECKING:
    from .delivery import Delivery

GOES_ON: Final = object()
"""Answer of a ``tell``: the client is gone, and what the call does goes on without it."""
Over: TypeAlias = Callable[[TpoError | None], object]
"""Told ``None`` when the reply is whole, ``Cancelled`` when nobody wanted the rest."""


def at_end(call: Call, tell: Callable[[Ending], object]) -> None:
    """Have ``tell`` called when the call has ended and its client was answered.

    For stages of the ADMIT phase: they run where the call is owned, which is where its end is
    known.  Elsewhere it is never told.
    """
    endings = call.endings
    if endings is None:
        call.endings = [tell]
    else:
        endings.append(tell)


def end_of(delivery: Delivery) -> Ending:
    """How a settled call ended."""
    reply, call = delivery.reply, delivery.call
    usage = None if reply is None else reply.usage
    prompt, completion = (-1, -1) if usage is None else (usage.prompt, usage.completion)
    return Ending(delivery.terminal, prompt, completion, delivery.error, call.attempts, call.aside)


def ending(
    terminal: Terminal, usage: Usage | None, error: TpoError | None, attempts: int,
    aside: Aside | None = None,
) -> Ending:  # fmt: skip
    """Put it together; counts that nobody reported are -1."""
    prompt, completion = (-1, -1) if usage is None else (usage.prompt, usage.completion)
    return Ending(terminal, prompt, completion, error, attempts, aside)


def tell_ended(call: Call, ended: Ending) -> None:
    """Tell everybody who asked ``at_end``; raises the first defect after all were told.

    One that answers ``GOES_ON`` takes over: those that asked after it are told when it calls this.
    """
    endings, call.endings = call.endings or [], None
    defect: Exception | None = None
    for number, tell in enumerate(endings, 1):
        try:
            if tell(ended) is GOES_ON:
                call.endings = endings[number:]
                break
        except Exception as e:  # noqa: BLE001 - the others must hear of the end too
            defect = defect or e
    if defect is not None:
        raise defect


def when_over(reply: Reply, tell: Over) -> None:
    """Have ``tell`` called when a reply is complete, broken off or given up; a whole body is."""
    stream = reply.stream
    if stream is None:
        tell(None)
    elif isinstance(stream, _Watched):
        stream.tells.append(tell)
    else:
        reply.stream = _Watched(stream, tell)


class _Watched:
    """A stream whose end somebody waits for; its bytes go straight from origin to sink."""

    __slots__ = ("_origin", "_sink", "data", "tells")

    def __init__(self, origin: Stream, tell: Over) -> None:
        self._origin = origin
        self._sink: Sink | None = None
        self.data: Callable[[bytes], None] = _ignored
        self.tells = [tell]

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self.data = sink.data
        self._origin.attach(self)

    def pause(self) -> None:
        self._origin.pause()

    def resume(self) -> None:
        self._origin.resume()

    def cancel(self) -> None:
        self._sink, self.data = None, _ignored
        self._origin.cancel()
        self._tell(Cancelled("nobody wanted the rest"))

    def end(self, error: TpoError | None) -> None:
        """The origin is through."""
        sink, self._sink, self.data = self._sink, None, _ignored
        self._tell(error)
        if sink is not None:
            sink.end(error)

    def _tell(self, error: TpoError | None) -> None:
        tells, self.tells = self.tells, []
        for tell in tells:
            try:
                tell(error)
            except Exception as e:  # noqa: BLE001 - the client's bytes do not depend on it
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "defect in a stage that was told of a reply's end", "exception": e}
                )


def _ignored(chunk: bytes) -> None:
    """Bytes that nobody wants any more."""
