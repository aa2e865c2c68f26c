"""A client that reads native events as server-sent events, of one call or of a whole session.

Each event has an ``id``, from which a client that was cut off resumes; silence is broken by a
comment every ``heartbeat_s``.

Invariants: the response ends with the final event of the one call it is about; after the client
left nothing is written; a client that does not read is the exchange's to end.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from tpo_mp.types import NO_DEADLINE, Sink

from .feed import FINAL, UNNUMBERED, Listener
from .feeds import Feeds, event_id

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

SSE = b"text/event-stream; charset=utf-8"
SSE_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
MAX_EXPECTED = 1024
_BEAT = b": still here\n\n"


class SseListener(Listener):
    """One response; also the ``Stream`` that its exchange pauses, and an entry of the wheel."""

    def __init__(
        self, feeds: Feeds, exchange: Exchange, *, whole: bool = True, lines: bytes = b""
    ) -> None:
        """``whole``: it ends with its call; ``lines`` are its header lines until there are more."""
        super().__init__()
        self.begun = False
        self.over = False
        self.sent_bytes = 0
        self.deadline = NO_DEADLINE
        self.filed_at = 0.0
        self.on_left: Callable[[], object] = self.leave
        self._feeds = feeds
        self._exchange = exchange
        self._whole = whole
        self._lines = lines
        self._expected: dict[str, int] = {}

    def begin(self, lines: bytes) -> None:
        if self.begun:
            return
        self.begun = True
        self._exchange.on_disconnect = self.left
        self._feeds.clients.add(self)
        self._rest()
        self._feeds.timers.add(self, monotonic())
        self._exchange.begin(200, SSE, lines + SSE_LINES, self)

    def refuse(self, status: int, body: bytes, lines: bytes) -> None:
        self.over = True
        self._exchange.respond(status, body, extra=lines)

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        if self.over:
            return
        if not self._whole and number != UNNUMBERED:
            # Shards may tell a session's events again after one of them was lost.
            if number < self._expected.get(call_id, 0):
                return
            self.expect(call_id, number)
        self.begin(self._lines)
        self._write(b"event: %b\n%bdata: %b\n\n"
                    % (name.encode(), event_id(call_id, number), data))  # fmt: skip
        if self._whole and name in FINAL:
            self.finish()

    def expect(self, call_id: str, after: int) -> None:
        """Ignore the events of a call up to number ``after``; only for sessions."""
        self._expected[call_id] = after + 1
        if len(self._expected) > MAX_EXPECTED:
            del self._expected[next(iter(self._expected))]

    def _write(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self._rest()
        self._exchange.write(data)

    def _rest(self) -> None:
        self.deadline = monotonic() + self._feeds.settings.heartbeat_s

    def expire(self) -> None:
        """Nothing was sent for a while."""
        if self.over:
            return
        self._rest()
        self._feeds.timers.add(self, monotonic())
        if not self.blocked:
            self._exchange.write(_BEAT)

    def finish(self) -> None:
        """End the response."""
        if not self.over:
            self._close()
            self._exchange.finish()

    def left(self) -> None:
        """The client went away."""
        if not self.over:
            self._close()
            self.on_left()

    def drain(self) -> None:
        """This process wants to leave; a call's own end will come."""
        if not self._whole and not self.over:
            self._close()
            self._exchange.finish()
            self.on_left()

    def _close(self) -> None:
        self.over = True
        self.deadline = NO_DEADLINE
        self._feeds.clients.discard(self)

    # -- the Stream its exchange pauses -------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Nothing is pulled from here: events are pushed."""

    def pause(self) -> None:
        self.block()

    def resume(self) -> None:
        self.unblock()

    def cancel(self) -> None:
        """Only clients leave."""
