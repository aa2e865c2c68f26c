"""Native requests over one WebSocket: messages in, events out, each tagged by its request id.

::

    client   {prompt, session_id?, stream?, client_request_id?, …}   as the body of /api/v1/infer
             {type: "cancel", request_id}
    gateway  {type: "ack", request_id, session_id, status: "processing"}   in the order of messages
             {type: "start" | "token" | "done" | "error", request_id, …}   the events of a stream

``stream: false`` leaves out start and tokens, so that a request has two answers.
An error has no request id when the message did not become a request; the connection goes on.

Invariants: at most ``most`` requests run at once; a message over the rate closes the connection
with 4029; a client that leaves cancels what it asked for; one that reads slowly pauses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import orjson

from tpo_mp.dialects import native
from tpo_mp.errors import (
    Cancelled,
    Draining,
    NotFound,
    RateLimited,
    Shed,
    TpoError,
)
from tpo_mp.http.socket import GOING_AWAY, Socket

from .absent import AbsentClient
from .feed import FINAL, Listener
from .gateway import Gateway
from .native_calls import native_call
from .native_stream import NativeStream

TOO_MANY_MESSAGES = 4029


class Conversation(Listener):
    """One client and its running requests; the ``Callbacks`` of its socket."""

    def __init__(
        self,
        gateway: Gateway,
        socket: Socket,
        sampling: Mapping[str, Any],
        *,
        most: int,
        closing_token: bool = False,
    ) -> None:
        """``sampling`` holds for requests that do not say.

        ``closing_token``: a last, empty token carries the finish reason, before ``done``.
        """
        super().__init__()
        self._gateway = gateway
        self._socket = socket
        self._sampling = sampling
        self._most = most
        self._closing_token = closing_token
        self._running: dict[str, _Asked] = {}
        self._draining = False
        per_min = gateway.feeds.settings.messages_per_min
        self._rate = _Rate(per_min) if per_min else None
        socket.heartbeat_s = gateway.feeds.settings.heartbeat_s
        socket.callbacks = self

    # -- Callbacks ----------------------------------------------------------------------------

    def message(self, text: str) -> None:
        if self._socket.closing:
            return
        if self._rate is not None and (wait_s := self._rate.take(monotonic())):
            error = RateLimited(
                "too many messages a minute", reason="RATE_LIMITED", retry_after_s=wait_s
            )
            self._refuse(error, None, None)
            self._socket.close(TOO_MANY_MESSAGES, "too many messages")
            return
        raw = text.encode()
        request_id = client_id = None
        try:
            said = native.decode_message(raw)
            request_id, client_id = said.request_id, said.client_request_id
            if said.type == "cancel":
                self._cancel(said)
            else:
                self._ask(said, raw)
        except TpoError as e:
            self._refuse(e, request_id, client_id)

    def left(self) -> None:
        self.leave()
        self._running.clear()

    def drain(self) -> None:
        self._draining = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._draining and not self._running:
            self._socket.close(GOING_AWAY, "this gateway is shutting down")

    # -- messages -----------------------------------------------------------------------------

    def _ask(self, said: native.SocketMessage, text: bytes) -> None:
        if self._draining:
            raise Draining("this gateway is shutting down", reason="draining", retry_after_s=1)
        if len(self._running) >= self._most:
            raise Shed(
                f"{self._most} requests of this connection run already; wait for one to end",
                reason="too_many_requests", retry_after_s=1, status=429,
            )  # fmt: skip
        gateway, socket = self._gateway, self._socket
        exchange = AbsentClient("GET", "", text, socket.peer)
        exchange.head = socket.head
        call = native_call(gateway, exchange, said, stream=True, **self._sampling)
        if said.client_request_id is not None:
            call.client_request_id = said.client_request_id
        stream = NativeStream(gateway, exchange, call, said.session or call.session, listener=self)
        asked = _Asked(stream, said.client_request_id, quiet=said.stream is False)
        self._running[call.id] = asked
        ack = {"session_id": stream.session_id, "status": "processing"}
        self._send("ack", asked, {"request_id": call.id} | ack)
        try:
            stream.run()
        except TpoError:
            del self._running[call.id]
            raise

    def _cancel(self, said: native.SocketMessage) -> None:
        asked = self._running.get(said.request_id or "")
        if asked is None:
            raise NotFound("no such request runs here", reason="request_not_found")
        asked.stream.stop(Cancelled("cancelled by the client"))

    # -- events -------------------------------------------------------------------------------

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:  # noqa: ARG002
        asked = self._running.get(call_id)
        if asked is None:
            return
        if name in FINAL:
            del self._running[call_id]
            self._end(asked, name, orjson.loads(data))
            self._close_if_idle()
        elif not asked.quiet:
            self._socket.send(asked.prefix(name) + data[1:])

    def _end(self, asked: _Asked, name: str, data: dict[str, Any]) -> None:
        if name == "error":
            self._send("error", asked, _error(data))
            return
        if self._closing_token and not asked.quiet:
            last = {"request_id": data["request_id"], "index": len(asked.stream.feed.texts)}
            self._send(
                "token",
                asked,
                last | {"text": "", "finish_reason": data["finish_reason"] or "stop"},
            )
        self._send("done", asked, data)

    def _send(self, kind: str, asked: _Asked, data: dict[str, Any]) -> None:
        tag = {"client_request_id": asked.client_id} if asked.client_id else {}
        self._socket.send(orjson.dumps({"type": kind} | data | tag))

    def _refuse(self, error: TpoError, request_id: str | None, client_id: str | None) -> None:
        shown = _error(native.error_object(error, request_id or ""))
        shown["request_id"] = request_id
        if client_id:
            shown["client_request_id"] = client_id
        self._socket.send(orjson.dumps({"type": "error"} | shown))


class _Asked:
    """One running request of a conversation."""

    __slots__ = ("_prefixes", "client_id", "quiet", "stream")

    def __init__(self, stream: NativeStream, client_id: str | None, *, quiet: bool) -> None:
        self.stream = stream
        self.client_id = client_id
        self.quiet = quiet
        tag = b'"client_request_id":%b,' % orjson.dumps(client_id) if client_id else b""
        self._prefixes = {
            "start": b'{"type":"start",' + tag,
            "token": b'{"type":"token","finish_reason":null,' + tag,
        }

    def prefix(self, name: str) -> bytes:
        """What an event's JSON object begins with here."""
        return self._prefixes[name]


class _Rate:
    """``per_min`` messages at once, then evenly spread."""

    __slots__ = ("_at", "_left", "_per_s", "_top")

    def __init__(self, per_min: int) -> None:
        self._top = self._left = float(per_min)
        self._per_s = per_min / 60
        self._at = 0.0

    def take(self, now: float) -> float:
        """0 when the message may pass, else the seconds until one may."""
        self._left = min(self._top, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._per_s
        self._left -= 1
        return 0.0


def _error(shown: dict[str, Any]) -> dict[str, Any]:
    """An error as a message: ``type`` says what the message is, and ``error`` repeats the code."""
    rest = {name: value for name, value in shown.items() if name != "type"}
    return rest | {"error": shown["code"], "status": "failed", "result": None}
