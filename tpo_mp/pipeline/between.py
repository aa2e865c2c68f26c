"""A stream between another and whoever reads it: what all that change bytes on their way share.

Invariants: the sink hears nothing after ``cancel``, and one end at most.
"""

from __future__ import annotations

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
