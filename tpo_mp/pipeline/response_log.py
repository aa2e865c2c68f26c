"""The events of one stream, kept so that whoever comes later can read them from any number on.

Readers pull pages; nobody is told anything, so a slow reader costs nothing but its place.

Invariants: events are numbered from 0 without a gap; what a full log or a full ``LogSpace`` has no
room for is dropped from the front, and a reader who wanted it is told that it is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque

from msgspec import Struct

MAX_LOG_BYTES = 4 << 20
MAX_SPACE_BYTES = 64 << 20
PAGE_BYTES = 65_536
_COMPACT_FROM = 1024


class EventPage(Struct, frozen=True, gc=False):
    """Some events in a row; ``last`` is the number of the last one read so far.

    ``gone``: the next event was dropped; ``ended``: none will follow ``last``; ``run`` tells apart
    streams of one name, of which the later began anew.
    """

    data: bytes
    last: int
    run: int = 0
    ended: bool = False
    gone: bool = False


class LogSpace:
    """The bytes that all logs of a shard may hold together; finished ones make room first."""

    __slots__ = ("_finished", "most", "used")

    def __init__(self, most: int = MAX_SPACE_BYTES) -> None:
        self.most = most
        self.used = 0
        self._finished: deque[ResponseLog] = deque()

    def finished(self, log: ResponseLog) -> None:
        """The log only waits for late readers."""
        self._finished.append(log)

    def full(self) -> bool:
        """Whether there is no room even without the finished logs, which are emptied as needed."""
        while self.used > self.most and self._finished:
            self._finished.popleft().clear()
        return self.used > self.most

    def forget(self, log: ResponseLog) -> None:
        """Nobody may read the log any more."""
        log.clear()
        if log in self._finished:
            self._finished.remove(log)


class ResponseLog:
    """One stream's events."""

    __slots__ = ("_bytes", "_dropped", "_events", "_first", "_news", "_space", "ended",
                 "run")  # fmt: skip

    def __init__(self, space: LogSpace, run: int = 0) -> None:
        self._space = space
        self.run = run
        self._events: list[bytes] = []
        self._first = 0  # number of the first in the list
        self._dropped = 0  # empty places at its front
        self._bytes = 0
        self._news = asyncio.Event()
        self.ended = False

    @property
    def count(self) -> int:
        """Events so far, dropped ones included: the number of the next one."""
        return self._first + len(self._events)

    def append(self, event: bytes) -> None:
        """Add the next event; the newest is always kept."""
        self._events.append(event)
        self._resize(len(event))
        while (self._bytes > MAX_LOG_BYTES or self._space.full()) and self._bytes > len(event):
            self._drop()
        self._news.set()

    def end(self) -> None:
        """No event follows."""
        self.ended = True
        self._space.finished(self)
        self._news.set()

    def clear(self) -> None:
        """Give all room back; readers find what they want gone."""
        while self._bytes:
            self._drop()
        self._news.set()

    async def page(self, after: int, wait_s: float, most: int = PAGE_BYTES) -> EventPage:
        """The events after number ``after`` (-1: all), as many as fit into ``most`` bytes.

        Waits up to ``wait_s`` for one; a page holds at least one event, however long, if there is.
        """
        until = asyncio.get_running_loop().time() + wait_s
        while after + 1 >= self.count and not self.ended:
            self._news.clear()
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return EventPage(b"", after, self.run)
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                return EventPage(b"", after, self.run)
        return self._read(after, most)

    def _read(self, after: int, most: int) -> EventPage:
        at = after + 1 - self._first
        if at < self._dropped:
            return EventPage(b"", after, self.run, gone=True)
        parts: list[bytes] = []
        size = 0
        events = self._events
        while at < len(events) and (not parts or size + len(events[at]) <= most):
            parts.append(events[at])
            size += len(events[at])
            at += 1
        last = after + len(parts)
        ended = self.ended and last + 1 >= self.count
        return EventPage(b"".join(parts), last, self.run, ended=ended)

    def _drop(self) -> None:
        at = self._dropped
        self._resize(-len(self._events[at]))
        self._events[at] = b""
        self._dropped = at = at + 1
        if at > _COMPACT_FROM and at * 2 > len(self._events):
            del self._events[:at]
            self._first += at
            self._dropped = 0

    def _resize(self, by: int) -> None:
        self._bytes += by
        self._space.used += by
