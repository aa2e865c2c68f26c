"""Delivery of a native stream: one event grammar, whatever dialect the backend speaks.

::

    start {request_id, session_id}
    token {request_id, index, text}                       one per piece of text
    done  {request_id, finish_reason, text, usage, latency_ms, provider, status, result}
    error {request_id, code, message, retry_after_ms}     instead of done

The events go into the call's ``Feed``; the client that asked is its first listener.

Invariants: every stream ends in ``done`` or ``error``; events are sent as they arrive; a call whose
last listener left is cancelled in the same turn, unless it was accepted to be fetched later or
``resume_s`` gives a listener time to come back.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import msgspec
import orjson

from tpo_mp.dialects import native, openai_chat
from tpo_mp.dialects.canonical import ReplyFailed, TextDelta
from tpo_mp.errors import BackendFailure, Cancelled, TpoError
from tpo_mp.types import Call, Reply, Terminal

from .delivery import retry_lines
from .feed import Feed, Listener, Reader, error_data
from .gateway import Gateway
from .native_delivery import NativeDelivery
from .sse_listener import SseListener

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange


class NativeStream(NativeDelivery):
    """Turns a chat stream into native events."""

    __slots__ = ("_decoder", "_front", "_reader", "_waiting", "feed")

    def __init__(
        self,
        gateway: Gateway,
        exchange: Exchange,
        call: Call,
        session_id: str | None,
        *,
        listener: Listener | None = None,
        detached: bool = False,
    ) -> None:
        """``detached``: the call was accepted, so that nobody's leaving ends it."""
        super().__init__(gateway, exchange, call, session_id, detached=detached)
        self._decoder = openai_chat.StreamDecoder()
        self._waiting: _Waiting | None = None
        self.feed = Feed(call, session_id, free=detached, deserted=self._deserted)
        front = listener
        if front is None:
            front = SseListener(gateway.feeds, exchange)
            exchange.on_disconnect = front.left
        self._front = front
        self._reader: Reader | None = None

    def run(self) -> None:
        """Submit the call; raises ``Shed``."""
        self._reader = self.feed.add(self._front)
        if self.detached:
            self._gateway.accept(self, self.session_id or "")
        else:
            self._gateway.submit(self)
        self._gateway.feeds.open(self.feed)

    # -- outcome of the chain -----------------------------------------------------------------

    def begin(self, reply: Reply) -> None:
        """Send the head and ``start``."""
        self.started = True
        self.status = 200
        if self._fronted:
            self._front.begin(self.lines(reply))
        self.feed.start(reply.stream)

    def send(self, reply: Reply) -> None:
        """Send a reply that came whole as a stream of one piece."""
        assert reply.body is not None
        try:
            seen = openai_chat.decode_reply(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = "upstream sent no chat completion"
            self.fail(BackendFailure(said, reason="bad_upstream_body"))
            return
        reply.finish_reason = seen.finish()
        self.begin(reply)
        if text := seen.text():
            self.feed.token(text)
        self.end(None)

    def data(self, chunk: bytes) -> None:
        """Send the text in a piece of the backend's stream."""
        try:
            for seen in self._decoder.feed(chunk):
                if isinstance(seen, TextDelta) and seen.text and not seen.choice:
                    self.feed.token(seen.text)
                elif isinstance(seen, ReplyFailed):
                    raise seen.error
        except TpoError as e:
            self._broken(e)

    def end(self, error: TpoError | None) -> None:
        """Send ``done``, or ``error``."""
        if error is not None or self.settled:
            super().end(error)
            return
        reply = self.reply
        assert reply is not None
        text = "".join(self.feed.texts)
        record = native.record(
            self.call.id,
            self.session_id,
            "completed",
            result=text,
            model=self.call.model,
            finish_reason=reply.finish_reason or None,
            usage=reply.usage,
            latency_ms=round((monotonic() - self.call.started_at) * 1e3, 3),
        )
        self._keep(record)
        done = record | {"text": text, "cached": False, "provider": self.call.backend}
        self.feed.finish("done", orjson.dumps(done))
        self.settle(Terminal.DONE, None)

    def fail(self, error: TpoError) -> None:
        """End with an error; a cancelled call's remaining listeners hear of it too."""
        if isinstance(error, Cancelled) and not self.settled:
            self.send_error(error)
        super().fail(error)

    def send_error(self, error: TpoError) -> None:
        """Answer the error plainly while the client's answer has not begun, else as an event."""
        front = self._front
        if self._fronted and not front.begun:
            assert self._reader is not None
            self.feed.release(self._reader)
            body = native.error_body(error, self.call.id)
            self.bytes_out = len(body)
            self.status = native.error_status(error)
            lines = self.lines(None) + retry_lines(error) + error.lines
            front.refuse(self.status, body, lines)
        self.send_error_event(error)

    def send_error_event(self, error: TpoError) -> None:
        """Send ``error`` to whoever listens."""
        self._keep(
            native.record(
                self.call.id,
                self.session_id,
                "failed",
                error=native.error_object(error, self.call.id),
                model=self.call.model,
            )
        )
        self.feed.finish("error", error_data(error, self.call.id))

    def sent(self) -> int:
        """Bytes that the client that asked was sent so far; a WebSocket's are not counted."""
        if not self.started:
            return 0
        return self._front.sent_bytes if isinstance(self._front, SseListener) else -1

    def settle(self, terminal: Terminal, error: TpoError | None) -> None:
        """Close the account."""
        if isinstance(self._front, SseListener) and self._front.begun:
            self.bytes_out = self._front.sent_bytes
        super().settle(terminal, error)

    @property
    def _fronted(self) -> bool:
        """Whether the client that asked still listens."""
        return self._reader in self._front.readers

    def _broken(self, error: TpoError) -> None:
        reply = self.reply
        self.fail(error)
        if reply is not None and reply.stream is not None:
            reply.stream.cancel()

    # -- listeners that leave -----------------------------------------------------------------

    def _deserted(self) -> None:
        wait_s = self._gateway.feeds.settings.resume_s
        if self.detached or self.settled:
            return
        if wait_s <= 0 or not self.started:
            self.left()
            return
        now = monotonic()
        self._waiting = _Waiting(self, now + wait_s)
        self._gateway.feeds.timers.add(self._waiting, now)


class _Waiting:
    """A call without listeners, in the wheel until one comes back."""

    __slots__ = ("_stream", "deadline", "filed_at")

    def __init__(self, stream: NativeStream, deadline: float) -> None:
        self._stream = stream
        self.deadline = deadline
        self.filed_at = 0.0

    def expire(self) -> None:
        """Nobody came."""
        stream = self._stream
        if stream._waiting is self and not stream.feed.readers:
            stream.left()
