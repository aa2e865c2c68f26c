"""The tap of a passed-through stream: did it end as it must, with which usage, and why.

It reads only what follows the first of the dialect's marks in a read, so a stream of words costs
a few byte searches per read.

Invariants: bytes are never changed or kept; a mark inside the model's words is only a second look.
Feed it whole events (``data:`` lines may not be cut).
"""

from __future__ import annotations

from collections.abc import Callable

from tpo_mp.types import Usage

from .sse import EventCutter

TAIL_BYTES = 4096


class StreamWatch:
    """What passed so far: ``ended`` is true once the dialect's terminal event was seen."""

    __slots__ = ("_look", "_marks", "ended", "failed", "finish_reason", "usage")

    def __init__(
        self, marks: tuple[bytes, ...], look: Callable[[StreamWatch, bytes, bytes], None]
    ) -> None:
        """``look(watch, event name, data)`` is called for events from the first mark on."""
        self._marks = marks
        self._look = look
        self.ended = False
        self.failed = False
        self.finish_reason = ""
        self.usage: Usage | None = None

    def feed(self, chunk: bytes) -> None:
        """See the next whole events."""
        first = len(chunk)
        for mark in self._marks:
            at = chunk.find(mark, 0, first)
            if at >= 0:
                first = at
        if first < len(chunk):
            # A blank line ends an event, whatever ends the other lines.
            at = chunk.rfind(b"\n\n", 0, first)
            self._read(chunk[at + 2 :] if at >= 0 else chunk)

    def _read(self, chunk: bytes) -> None:
        for name, data in EventCutter().feed(chunk):
            self._look(self, name, data)


class TailWatch:
    """A ``StreamWatch`` that only keeps the end of the stream and looks when asked.

    For dialects whose usage, finish reason and terminal event all stand at the end: a read costs
    one copy of at most ``TAIL_BYTES``, whatever it says.
    """

    __slots__ = ("_cut", "_stale", "_tail", "_watch")

    def __init__(
        self, marks: tuple[bytes, ...], look: Callable[[StreamWatch, bytes, bytes], None]
    ) -> None:
        self._watch = StreamWatch(marks, look)
        self._tail = b""
        self._cut = False
        self._stale = False

    def feed(self, chunk: bytes) -> None:
        """See the next whole events."""
        self._stale = True
        if len(chunk) >= TAIL_BYTES:
            self._tail = chunk
            self._cut = False
            return
        tail = self._tail + chunk
        if len(tail) > TAIL_BYTES:
            self._cut = True
            tail = tail[-TAIL_BYTES:]
        self._tail = tail

    def _now(self) -> StreamWatch:
        if self._stale:
            self._stale = False
            tail = self._tail.replace(b"\r\n", b"\n")
            # A tail that was cut begins inside an event.
            self._watch.feed(tail.partition(b"\n\n")[2] if self._cut else tail)
        return self._watch

    @property
    def ended(self) -> bool:
        """Whether the dialect's terminal event was seen."""
        return self._now().ended

    @property
    def failed(self) -> bool:
        """Whether the stream told of an error."""
        return self._now().failed

    @property
    def finish_reason(self) -> str:
        """Why the model stopped; "" when it did not say."""
        return self._now().finish_reason

    @property
    def usage(self) -> Usage | None:
        """The counts, if the stream had any."""
        return self._now().usage
