"""One native call's events, and whoever listens to them.

::

    number   0       1 … n            n + 1
    event    start   tokens           done or error

A listener reads at its own place in the feed, so nobody has a buffer here: the texts that ``done``
repeats anyway are the log, and an event is rendered again for whoever comes late.
The fastest listener sets the pace: the upstream is paused only while all of them are blocked, and
not at all for a call that goes on without any.  One that falls ``MAX_LAG`` events further behind
than it began is cut off with an ``error`` event that has no number.

Invariants: every listener sees numbers rise by one; nothing follows the final event; a feed without
listeners tells its call at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from tpo_mp.dialects import native
from tpo_mp.errors import Shed, TooLarge, TpoError

if TYPE_CHECKING:
    from tpo_mp.types import Call, Stream

MAX_LAG = 4096
MAX_LISTENERS = 256
MAX_TEXT_BYTES = 32 << 20
UNNUMBERED = -1
FINAL = ("done", "error")


class Source(Protocol):
    """Where events come from that are not of this process's own calls."""

    def room(self) -> None:
        """The listener takes events again."""

    def leave(self) -> None:
        """The listener wants no more."""


class Listener(ABC):
    """Where events go: a client's connection, or another shard.

    ``begun`` is False while an error can still be answered as a plain response.
    """

    begun = True

    def __init__(self) -> None:
        self.blocked = False
        self.readers: set[Reader] = set()
        self.sources: set[Source] = set()

    def begin(self, lines: bytes) -> None:  # noqa: B027 - most have nothing to begin
        """The reply exists; ``lines`` are the gateway's header lines."""

    def refuse(self, status: int, body: bytes, lines: bytes) -> None:
        """Answer an error plainly; only before ``begin``."""
        raise AssertionError(status, body, lines)

    @abstractmethod
    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        """Take one event; ``data`` is a JSON object.  Called only while not blocked, but to cut."""

    def block(self) -> None:
        """Stop taking events."""
        self.blocked = True
        for reader in list(self.readers):
            reader.feed.repace()

    def unblock(self) -> None:
        """Take events again, first those missed."""
        self.blocked = False
        for reader in list(self.readers):
            reader.feed.pump(reader)
            reader.feed.repace()
        for source in list(self.sources):
            source.room()

    def leave(self) -> None:
        """Take nothing more, from anywhere."""
        for reader in list(self.readers):
            reader.feed.remove(reader)
        for source in list(self.sources):
            source.leave()


class Reader:
    """A listener's place in one feed: ``at`` is the number it has not yet seen."""

    __slots__ = ("at", "feed", "listener", "slack")

    def __init__(self, feed: Feed, listener: Listener, at: int) -> None:
        self.feed = feed
        self.listener = listener
        self.at = at
        self.slack = feed.end - at + MAX_LAG


class Feed:
    """The events of one call; ``deserted`` hears when the last listener of a running one left."""

    __slots__ = (
        "_call", "_paused", "_size", "_source", "deserted", "final", "free", "id", "kept_until",
        "on_final", "readers", "session", "started", "texts",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        session: str | None,
        *,
        free: bool = False,
        deserted: Callable[[], None],
    ) -> None:
        """``free``: the call goes on at its own pace, with listeners or without."""
        self.id = call.id
        self.session = session
        self._call = call
        self.free = free
        self.deserted = deserted
        self.texts: list[str] = []
        self.started = False
        self.final: tuple[str, bytes] | None = None
        self.readers: tuple[Reader, ...] = ()
        self.on_final: Callable[[Feed], None] | None = None
        self.kept_until = 0.0
        self._size = 0
        self._paused = False
        self._source: Stream | None = None

    @property
    def tenant(self) -> str:
        """Whose call it is; known once the call is admitted."""
        return self._call.tenant

    @property
    def end(self) -> int:
        """The number the next event will have."""
        if self.final is not None:
            return len(self.texts) + 2
        return len(self.texts) + 1 if self.started else 0

    @property
    def size(self) -> int:
        """Bytes it holds, roughly."""
        return self._size + (0 if self.final is None else len(self.final[1]))

    # -- from the call ------------------------------------------------------------------------

    def start(self, source: Stream | None) -> None:
        """The reply exists; ``source`` is what may be paused."""
        self.started = True
        self._source = source
        self._tell(0, "start", self._render_start())
        self.repace()

    def token(self, text: str) -> None:
        """A piece of text came; raises ``TooLarge`` when it is too much."""
        self._size += len(text)
        if self._size > MAX_TEXT_BYTES:
            raise TooLarge(f"the reply is over {MAX_TEXT_BYTES} bytes", reason="endless_reply",
                           status=502)  # fmt: skip
        self.texts.append(text)
        number = len(self.texts)
        self._tell(number, "token", self._render_token(number))

    def finish(self, name: str, data: bytes) -> None:
        """The final event; later ones are ignored."""
        if self.final is not None:
            return
        self.final = (name, data)
        self._source = None
        self._tell(len(self.texts) + 1, name, data)
        if self.on_final is not None:
            self.on_final(self)

    def _tell(self, number: int, name: str, data: bytes) -> None:
        for reader in self.readers:
            if reader.listener.blocked:
                if number - reader.at > reader.slack:
                    self._cut(reader)
            elif reader.at == number:
                reader.at = number + 1
                reader.listener.take(self.id, number, name, data)
                if name in FINAL:
                    self.release(reader)
            else:
                self.pump(reader)

    # -- listeners ----------------------------------------------------------------------------

    def add(self, listener: Listener, after: int = UNNUMBERED) -> Reader:
        """Let ``listener`` have everything after number ``after``; raises ``Shed`` when crowded."""
        if len(self.readers) >= MAX_LISTENERS:
            raise Shed("too many listen to this stream", reason="too_many_listeners",
                       retry_after_s=5)  # fmt: skip
        reader = Reader(self, listener, after + 1)
        self.readers = (*self.readers, reader)
        listener.readers.add(reader)
        self.pump(reader)
        self.repace()
        return reader

    def pump(self, reader: Reader) -> None:
        """Send a reader what it has missed, as far as it takes it."""
        listener = reader.listener
        while reader.at < self.end and not listener.blocked and reader in listener.readers:
            number = reader.at
            if number == 0 and not self.started:
                reader.at = self.end - 1  # it failed before it began
                continue
            reader.at = number + 1
            if 0 < number <= len(self.texts):
                listener.take(self.id, number, "token", self._render_token(number))
            elif number == 0:
                listener.take(self.id, 0, "start", self._render_start())
            elif self.final is not None:
                listener.take(self.id, number, *self.final)
        if self.final is not None and reader.at >= self.end:
            self.release(reader)

    def remove(self, reader: Reader) -> None:
        """A listener leaves."""
        if self.release(reader) and self.final is None:
            self.repace()
            if not self.readers:
                self.deserted()

    def repace(self) -> None:
        """Pause the upstream while nobody can take anything, and only then."""
        source = self._source
        if source is None:
            return
        blocked = (
            not self.free
            and bool(self.readers)
            and all(reader.listener.blocked for reader in self.readers)
        )
        if blocked != self._paused:
            self._paused = blocked
            if blocked:
                source.pause()
            else:
                source.resume()

    def _cut(self, reader: Reader) -> None:
        self.release(reader)
        error = Shed("this listener reads too slowly", reason="slow_listener", retry_after_s=1)
        reader.listener.take(self.id, UNNUMBERED, "error", error_data(error, self.id))

    def release(self, reader: Reader) -> bool:
        """Tell a reader nothing more; False when it was told the end already."""
        if reader not in reader.listener.readers:
            return False
        reader.listener.readers.discard(reader)
        self.readers = tuple(r for r in self.readers if r is not reader)
        return True

    # -- rendering ----------------------------------------------------------------------------

    def _render_start(self) -> bytes:
        return orjson.dumps({"request_id": self.id, "session_id": self.session})

    def _render_token(self, number: int) -> bytes:
        text = self.texts[number - 1]
        return orjson.dumps({"request_id": self.id, "index": number - 1, "text": text})


def error_data(error: TpoError, call_id: str) -> bytes:
    """The data of an ``error`` event."""
    shown: dict[str, Any] = native.error_object(error, call_id)
    return orjson.dumps({"request_id": call_id} | shown)
