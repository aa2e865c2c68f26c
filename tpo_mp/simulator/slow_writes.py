"""Faults in how a stream is written: a few bytes at a time, cut inside characters, many at once.

::

    stream ──► [pieces] ──► write ──► pause ──► write … ──► end

What a client puts together again is unchanged; only the boundaries and the time differ.

Invariants: the sink hears every byte in order, and the end after them; at most ``HELD_BYTES`` and
one batch wait here, beyond which the stream is paused; after ``STALL_S`` the connection is cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from tpo_mp.errors import TpoError
from tpo_mp.types import Sink, Stream

from .fault_frames import cut
from .orders import STALL_S, FaultOrder

HELD_BYTES: Final = 65_536
_END: Final = b"\n\n"

Wait = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Calls back once after some seconds, unless what it answers is called first."""
KINDS: Final = ("trickle", "split", "coalesce")


def written_with(stream: Stream, fault: FaultOrder, later: Wait) -> Stream:
    """The stream as a fault has it written; kinds that are not about writing change nothing."""
    if fault.kind not in KINDS:
        return stream
    return SlowWrites(stream, fault, later if fault.every_s else next_turn, later)


def next_turn(_seconds: float, then: Callable[[], None]) -> Callable[[], None]:
    """Go on when what was written has been given to the kernel, which then sends it alone."""
    return asyncio.get_running_loop().call_soon(then).cancel


class SlowWrites:
    """A ``Stream`` that writes another's bytes in pieces of its own."""

    __slots__ = (
        "_end",
        "_events",
        "_fault",
        "_held",
        "_inner",
        "_later",
        "_over",
        "_paused",
        "_pieces",
        "_sink",
        "_size",
        "_stop",
        "_wait",
    )  # fmt: skip

    def __init__(self, inner: Stream, fault: FaultOrder, wait: Wait, later: Wait) -> None:
        """``wait`` is for the moments between writes, ``later`` for the cut at last."""
        self._inner = inner
        self._fault = fault
        self._wait = wait
        self._later = later
        self._sink: Sink | None = None
        self._pieces: deque[bytes] = deque()
        self._events: list[bytes] = []
        self._size = 0
        self._held = False
        self._paused = False
        self._over = False
        self._end: tuple[TpoError | None] | None = None
        self._stop: list[Callable[[], None]] = []

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Start."""
        self._sink = sink
        self._stop = [self._later(STALL_S, self._cut)]
        self._inner.attach(self)

    def pause(self) -> None:
        """Write nothing."""
        self._paused = True
        self._hold()

    def resume(self) -> None:
        """Write on."""
        self._paused = False
        if len(self._stop) == 1:
            self._write()

    def cancel(self) -> None:
        """Forget the rest."""
        self._close()
        self._inner.cancel()

    # -- Sink of the inner stream -------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        """Take what the stream says."""
        for piece in self._cut_up(chunk):
            self._pieces.append(piece)
            self._size += len(piece)
        if self._size > HELD_BYTES:
            self._hold()
        if len(self._stop) == 1 and not self._paused:
            self._write()

    def end(self, error: TpoError | None) -> None:
        """Take its end."""
        if self._events:
            self._pieces.append(b"".join(self._events))
            self._size += len(self._pieces[-1])
            self._events.clear()
        self._end = (error,)
        if len(self._stop) == 1 and not self._paused:
            self._write()

    # -- writing ------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write a piece, and wait before the next."""
        if self._over or self._paused or self._sink is None:
            return
        if not self._pieces:
            if self._end is None:
                self._unhold()
            else:
                self._finish()
            return
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._stop.append(self._wait(self._fault.every_s, self._next))
        self._sink.data(piece)
        if self._size <= HELD_BYTES // 2 and not self._over and not self._paused:
            self._unhold()

    def _hold(self) -> None:
        self._held = True
        self._inner.pause()

    def _unhold(self) -> None:
        if self._held:
            self._held = False
            self._inner.resume()

    def _next(self) -> None:
        del self._stop[1:]
        self._write()

    def _finish(self) -> None:
        assert self._end is not None
        (error,), sink = self._end, self._sink
        self._close()
        if sink is not None:
            sink.end(error)

    def _cut(self) -> None:
        self._inner.cancel()
        self._pieces.clear()
        self._end = (cut(),)
        self._finish()

    def _close(self) -> None:
        self._over = True
        self._sink = None
        self._pieces.clear()
        stops, self._stop = self._stop, []
        for stop in stops:
            stop()

    def _cut_up(self, chunk: bytes) -> Iterator[bytes]:
        kind, size = self._fault.kind, self._fault.size
        if kind == "trickle":
            yield from (chunk[at : at + size] for at in range(0, len(chunk), size))
            return
        for event in events_in(chunk):
            if kind == "split":
                yield from halves(event)
                continue
            self._events.append(event)
            if len(self._events) >= size:
                yield b"".join(self._events)
                self._events.clear()


def events_in(chunk: bytes) -> Iterator[bytes]:
    """The events of a batch, one by one."""
    *whole, rest = chunk.split(_END)
    for event in whole:
        yield event + _END
    if rest:
        yield rest


def halves(event: bytes) -> Iterator[bytes]:
    """An event in two: inside its first character of several bytes, or else in its middle."""
    middle = max(len(event) // 2, 1)
    at = next((n for n, byte in enumerate(event, 1) if byte >= 0xC0), middle)
    yield event[:at]
    if event[at:]:
        yield event[at:]
