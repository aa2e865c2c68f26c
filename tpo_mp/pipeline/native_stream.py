"""Delivery of a native stream: one event grammar, whatever dialect the backend speaks.

::

    start {request_id, session_id}
    token {request_id, index, text}                       one per piece of text
    done  {request_id, finish_reason, text, usage, latency_ms, provider, status, result}
    error {request_id, code, message, retry_after_ms}     instead of done

Invariants: every stream ends in ``done`` or ``error``; events are sent as they arrive.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import orjson

from tpo_mp.dialects import native, openai_chat
from tpo_mp.dialects.canonical import ReplyFailed, TextDelta
from tpo_mp.errors import TpoError
from tpo_mp.types import Call, Reply, Terminal

from .delivery import SSE_LINES
from .gateway import Gateway
from .native_delivery import NativeDelivery

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

SSE = b"text/event-stream; charset=utf-8"


def event(name: str, data: dict[str, object]) -> bytes:
    """One named server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


class NativeStream(NativeDelivery):
    """Turns a chat stream into native events."""

    __slots__ = ("_decoder", "_index", "_parts")

    def __init__(
        self, gateway: Gateway, exchange: Exchange, call: Call, session_id: str | None
    ) -> None:
        super().__init__(gateway, exchange, call, session_id)
        self._decoder = openai_chat.StreamDecoder()
        self._index = 0
        self._parts: list[str] = []

    def begin(self, reply: Reply) -> None:
        """Send the head and ``start``."""
        self.started = True
        self.status = 200
        self.exchange.begin(200, SSE, self.lines(reply) + SSE_LINES, reply.stream)
        self._emit("start", {"session_id": self.session_id})

    def data(self, chunk: bytes) -> None:
        """Send the text in a piece of the backend's stream."""
        try:
            found = self._decoder.feed(chunk)
        except TpoError as e:
            self._broken(e)
            return
        for seen in found:
            if isinstance(seen, TextDelta) and seen.text and not seen.choice:
                self._parts.append(seen.text)
                self._emit("token", {"index": self._index, "text": seen.text})
                self._index += 1
            elif isinstance(seen, ReplyFailed):
                self._broken(seen.error)
                return

    def end(self, error: TpoError | None) -> None:
        """Send ``done``, or ``error``."""
        if error is not None or self.settled:
            super().end(error)
            return
        reply = self.reply
        assert reply is not None
        text = "".join(self._parts)
        done = native.record(
            self.call.id,
            self.session_id,
            "completed",
            result=text,
            model=self.call.model,
            finish_reason=reply.finish_reason or None,
            usage=reply.usage,
            latency_ms=round((monotonic() - self.call.started_at) * 1e3, 3),
        )
        self._emit("done", done | {"text": text, "cached": False, "provider": self.call.backend})
        self.exchange.finish()
        self.settle(Terminal.DONE, None)

    def send_error_event(self, error: TpoError) -> None:
        """Send ``error`` and end the body."""
        shown = native.error_object(error, self.call.id)
        self._emit("error", shown)
        self.exchange.finish()

    def _broken(self, error: TpoError) -> None:
        reply = self.reply
        self.fail(error)
        if reply is not None and reply.stream is not None:
            reply.stream.cancel()

    def _emit(self, name: str, data: dict[str, object]) -> None:
        sent = event(name, {"request_id": self.call.id} | data)
        self.bytes_out += len(sent)
        self.exchange.write(sent)
