"""The stream of one answer: events made as they are taken, at the pace of a model.

::

    frames ──► [stall] ──► released? ──► sink        release(n): n more tokens may go
                                ▲
                       pace: a timer, or whoever runs the model

What the frames end with, if it is an error, is what the sink hears.

A frame that is no token goes with whatever stands before it; a token goes when it is released.
Frames that may go together leave in one write.

The pace begins with ``start``, when the call arrives; there is a reply, and a sink, once it has
released the first token, and a whole reply once it has released the last.

Invariants: nothing is rendered before it may go; the sink hears the end once, or nothing more
after ``cancel``; whoever paces is told to stop once, whatever the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from tpo_mp.errors import TpoError
from tpo_mp.types import Sink

from .fault_frames import Frame, cut
from .orders import STALL_S, FaultOrder
from .timing import EVERYTHING, Pace

BATCH_BYTES: Final = 8_192


class Later(Protocol):
    """Calls back once after some seconds, unless stopped."""

    def __call__(self, seconds: float, then: Callable[[], None], /) -> Callable[[], None]: ...


class WholeAnswer:
    """Counts the tokens of an answer that goes whole."""

    __slots__ = ("_left", "_pace", "_ready")

    def __init__(self, pace: Pace, tokens: int) -> None:
        self._pace = pace
        self._left = max(tokens, 1)
        self._ready: Callable[[], None] | None = None

    def start(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` when the last token is released, maybe before this returns."""
        self._ready = ready
        self._pace.begin(self._release)

    def cancel(self) -> None:
        """Never be ready."""
        if self._ready is not None:
            self._ready = None
            self._pace.stop()

    def _release(self, tokens: int) -> None:
        self._left -= tokens
        ready = self._ready
        if self._left <= 0 and ready is not None:
            self.cancel()
            ready()


class SimulatedStream:
    """The ``Stream`` of a simulated reply."""

    __slots__ = ("_frames", "_held", "_later", "_over", "_pace", "_paused", "_ready",
                 "_released", "_sink", "_stall", "_stalled", "_tokens", "_wake",
                 "on_end")  # fmt: skip

    def __init__(
        self, frames: Iterator[Frame], pace: Pace, stall: FaultOrder | None, later: Later
    ) -> None:
        self._frames = frames
        self._pace = pace
        self._stall = stall
        self._later = later
        self._sink: Sink | None = None
        self._held: Frame | None = None
        self._released = 0
        self._tokens = 0
        self._ready: Callable[[], None] | None = None
        self._paused = False
        self._stalled = False
        self._over = False
        self._wake: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None
        """Called once the stream is over, however."""

    def start(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` when the first token is released, maybe before this returns."""
        self._ready = ready
        self._pace.begin(self.release)

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Start, or go on, delivering to ``sink``."""
        self._sink = sink
        self._go()

    def pause(self) -> None:
        """Hold what may go."""
        self._paused = True

    def resume(self) -> None:
        """Deliver what became due meanwhile."""
        self._paused = False
        self._go()

    def cancel(self) -> None:
        """Forget the rest."""
        self._sink = None
        self._close()

    def fail(self, error: TpoError) -> None:
        """End with an error."""
        self._finish([], error)

    def break_off(self, shorten: Callable[[int], None]) -> None:
        """End behind what is released; ``shorten(tokens)`` makes the frames have no more."""
        left = self._released - self._tokens
        if self._held is not None:
            if self._held[1] > left:
                self._held = None
            else:
                left -= self._held[1]
        shorten(left)
        self.release(EVERYTHING)

    # -- pace ---------------------------------------------------------------------------------

    def release(self, tokens: int) -> None:
        """Let more tokens go."""
        self._released += tokens
        ready = self._ready
        if ready is None:
            self._go()
        elif not self._over:
            self._ready = None
            ready()

    def _go(self) -> None:
        """Send all that may go now."""
        while not (self._paused or self._stalled or self._over) and self._sink is not None:
            batch = self._batch()
            if not batch:
                return
            self._sink.data(batch)

    def _batch(self) -> bytes:
        """The frames that may go in one write; ends the stream after the last."""
        out: list[bytes] = []
        size = 0
        while size < BATCH_BYTES:
            try:
                frame = self._held or next(self._frames, None)
            except TpoError as error:
                self._finish(out, error)
                break
            self._held = None
            if frame is None:
                self._finish(out, None)
                break
            data, tokens = frame
            stall = self._stall
            if stall is not None and tokens and data and self._tokens >= stall.after:
                self._fall_silent(stall, frame)
                break
            if tokens and self._tokens + tokens > self._released:
                self._held = data, tokens
                break
            self._tokens += tokens
            out.append(data)
            size += len(data)
        return b"".join(out)

    # -- silence ------------------------------------------------------------------------------

    def _fall_silent(self, stall: FaultOrder, frame: Frame) -> None:
        """Say nothing from this frame on."""
        self._stall = None
        self._held = frame
        self._stalled = True
        if stall.lasts_s is None:
            self._wake = self._later(STALL_S, self._cut)
        else:
            self._wake = self._later(stall.lasts_s, self._unstall)

    def _unstall(self) -> None:
        self._stalled = False
        self._go()

    def _cut(self) -> None:
        self._finish([], cut())

    def _finish(self, out: list[bytes], error: TpoError | None) -> None:
        """Tell the end, after what is still to be said."""
        sink, self._sink = self._sink, None
        self._close()
        if sink is not None:
            if out:
                sink.data(b"".join(out))
                out.clear()
            sink.end(error)

    def _close(self) -> None:
        if self._over:
            return
        self._over = True
        self._frames = iter(())
        self._held = None
        self._ready = None
        self._pace.stop()
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()
        over, self.on_end = self.on_end, None
        if over is not None:
            over()
