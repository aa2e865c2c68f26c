"""Delivery in the native dialect: one record, sent now or kept for later.

Invariants: a detached delivery never writes to the exchange; its record is final once settled.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from tpo_mp.dialects import native, openai_chat
from tpo_mp.errors import BackendFailure, Cancelled, ConnectionCut, TpoError
from tpo_mp.types import Call, Reply, Terminal

from .absent import AbsentClient
from .delivery import Delivery, retry_lines
from .gateway import Gateway

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange


class NativeDelivery(Delivery):
    """Turns a chat reply into a native record."""

    __slots__ = ("detached", "on_record", "record", "session_id")

    def __init__(
        self,
        gateway: Gateway,
        exchange: Exchange,
        call: Call,
        session_id: str | None,
        *,
        detached: bool = False,
    ) -> None:
        super().__init__(gateway, exchange, call)
        self.session_id = session_id
        self.detached = detached
        self.record: dict[str, Any] | None = None
        self.on_record: Callable[[dict[str, Any]], None] | None = None
        if detached:
            exchange.on_disconnect = None
            # The connection may carry another request before this call ends.
            method, path = exchange.head.method, exchange.head.path
            self.exchange = AbsentClient(method, path, peer=exchange.peer)

    def send(self, reply: Reply) -> None:
        """Answer, or keep, the finished record."""
        assert reply.body is not None
        try:
            seen = openai_chat.decode_reply(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail(
                BackendFailure("upstream sent no chat completion", reason="bad_upstream_body")
            )
            return
        self.status = 200
        reply.finish_reason = seen.finish()
        record = native.record(
            self.call.id,
            self.session_id,
            "completed",
            result=seen.text(),
            model=seen.model or self.call.model,
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            latency_ms=round((monotonic() - self.call.started_at) * 1e3, 3),
        )
        if not self.detached:
            body = orjson.dumps(record)
            self.bytes_out = len(body)
            self.exchange.respond(200, body, extra=self.lines(reply))
        self._keep(record)
        self.settle(Terminal.DONE, None)

    def send_error(self, error: TpoError) -> None:
        """Answer the error, or keep the failed record."""
        shown = native.error_object(error, self.call.id)
        if not self.detached:
            body = orjson.dumps({"error": shown})
            self.bytes_out = len(body)
            self.status = native.error_status(error)
            lines = self.lines(None) + retry_lines(error) + error.lines
            self.exchange.respond(self.status, body, extra=lines)
        status = "cancelled" if isinstance(error, Cancelled) else "failed"
        call = self.call
        self._keep(native.record(call.id, self.session_id, status, error=shown, model=call.model))

    def cut(self, error: ConnectionCut) -> None:
        """Break the connection; a call whose client has its answer already just fails."""
        if self.detached:
            self.status = error.status
            self.send_error(error)
            self.settle(Terminal.FAILED, error)
        else:
            super().cut(error)

    def _keep(self, record: dict[str, Any]) -> None:
        self.record = record
        if self.on_record is not None:
            self.on_record(record)
