"""The tap of a passed-through stream: did it end as it must, with which usage, and why.

It reads only events that carry one of the dialect's marks, so a stream of words costs a few
byte searches per read.

Invariants: bytes are never changed or kept; a mark inside the model's words is only a second look.
Feed it whole events (``data:`` lines may not be cut).
"""

from __future__ import annotations

from collections.abc import Callable

from tpo_mp.types import Usage

from .sse import EventCutter


class StreamWatch:
    """What passed so far: ``ended`` is true once the dialect's terminal event was seen."""

    __slots__ = ("_look", "_marks", "ended", "failed", "finish_reason", "usage")

    def __init__(
        self, marks: tuple[bytes, ...], look: Callable[[StreamWatch, bytes, bytes], None]
    ) -> None:
        """``look(watch, event name, data)`` is called for events that hold a mark."""
        self._marks = marks
        self._look = look
        self.ended = False
        self.failed = False
        self.finish_reason = ""
        self.usage: Usage | None = None

    def feed(self, chunk: bytes) -> None:
        """See the next whole events."""
        for mark in self._marks:
            if mark in chunk:
                self._read(chunk)
                return

    def _read(self, chunk: bytes) -> None:
        for name, data in EventCutter().feed(chunk):
            if any(mark in name or mark in data for mark in self._marks):
                self._look(self, name, data)
