"""A stream between others and whoever reads it: what all that change bytes on their way share.

Invariants: the sink hears nothing after ``cancel``, and one end at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from tpo_mp.errors import TpoError
from tpo_mp.types import Sink, Stream


class Between:
    """Passes everything on as it comes; whoever changes it overrides ``data`` and ``end``."""

    __slots__ = ("_origin", "_sink")

    def __init__(self, origin: Stream) -> None:
        self._origin = origin
        self._sink: Sink | None = None

    # -- Stream ---------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._origin.attach(self)

    def pause(self) -> None:
        self._origin.pause()

    def resume(self) -> None:
        self._origin.resume()

    def cancel(self) -> None:
        self._sink = None
        self._origin.cancel()

    # -- Sink of the origin ---------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        """Take bytes of the origin's, cut anywhere."""
        if chunk and self._sink is not None:
            self._sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        """The origin is through."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)


class Spliced(ABC):
    """One stream of several, each followed when the one before it broke off.

    Between two there is none; a reader who leaves meanwhile ends the search for the next.
    """

    __slots__ = ("_origin", "_paused", "_sink")

    def __init__(self, origin: Stream) -> None:
        self._origin: Stream | None = origin
        self._sink: Sink | None = None
        self._paused = False

    def follow(self, origin: Stream) -> None:
        """Go on with another stream, in the state that the reader is in."""
        self._origin = origin
        origin.attach(self)
        if self._paused and self._origin is not None:  # it may have ended at once
            self._origin.pause()

    @abstractmethod
    def stop_looking(self) -> None:
        """Nobody wants the next one any more."""

    # -- Stream ---------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._origin is not None:
            self._origin.attach(self)

    def pause(self) -> None:
        self._paused = True
        if self._origin is not None:
            self._origin.pause()

    def resume(self) -> None:
        self._paused = False
        if self._origin is not None:
            self._origin.resume()

    def cancel(self) -> None:
        """Nobody wants the rest."""
        origin = self._origin
        self._sink = self._origin = None
        if origin is not None:
            origin.cancel()
        else:
            self.stop_looking()

    # -- Sink of the one that is followed -------------------------------------------------------

    @abstractmethod
    def data(self, chunk: bytes) -> None: ...

    @abstractmethod
    def end(self, error: TpoError | None) -> None: ...
