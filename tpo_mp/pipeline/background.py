"""Delivery of a background response: to a log of events and to the store, not to a client.

The call always runs as a stream, whatever its client asked for: its events can be followed, its
last event is the whole response, and it is cancelled like any stream.

Invariants: the client that made it may leave; ``on_response`` hears each state of the response,
the final one last and once; the log ends when the response is final.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from tpo_mp.dialects import openai_responses_background as dialect
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure, Cancelled, TpoError
from tpo_mp.types import Call, Reply, Terminal

from .absent import AbsentClient
from .answer import TOLD
from .delivery import Delivery, terminal_of
from .gateway import Gateway
from .response_log import ResponseLog

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

OnResponse = Callable[[dict[str, Any]], None]


class BackgroundDelivery(Delivery):
    """Collects one response stream."""

    __slots__ = ("_cutter", "_final", "_on_response", "log", "response")

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        response: dict[str, Any],
        log: ResponseLog,
        on_response: OnResponse,
    ) -> None:
        """``response`` is the object as its client first saw it."""
        nobody: Exchange = AbsentClient("POST", dialect.PATH, call.body)
        super().__init__(gateway, nobody, call)
        self.template = dialect.PATH
        self.response = response
        self.log = log
        self._cutter = EventCutter()
        self._final: dict[str, Any] | None = None
        self._on_response = on_response

    def sent(self) -> int:
        """Nothing: who follows the response has a request of its own."""
        return 0

    def begin(self, reply: Reply) -> None:  # noqa: ARG002
        """The first event is there."""
        self.started = True
        self.status = 200
        self._show({"status": "in_progress"})

    def send(self, reply: Reply) -> None:
        """Keep a whole response, from a backend that streams nothing."""
        try:
            final = orjson.loads(reply.body or b"")
        except orjson.JSONDecodeError:
            final = None
        if not isinstance(final, dict):
            said = "the backend answered no response object"
            self.fail(BackendFailure(said, reason="bad_upstream_body"))
            return
        self.started, self.status, self._final = True, 200, final
        self._finish()

    def data(self, chunk: bytes) -> None:
        """Keep the events of a piece of the stream."""
        if self.settled:
            return
        self.bytes_out += len(chunk)
        try:
            for _, data in self._cutter.feed(chunk):
                if data != b"[DONE]":
                    self._keep(data)
        except BackendFailure as error:
            reply = self.reply
            self.fail(error)
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()

    def end(self, error: TpoError | None) -> None:
        """Keep the response."""
        if error is not None or self.settled:
            super().end(error)
        elif self._final is None:
            said = "upstream ended the stream before its end"
            self.fail(BackendFailure(said, reason="truncated_stream"))
        else:
            self._finish()

    def fail(self, error: TpoError) -> None:
        """End the call with an error: the response is failed, or cancelled."""
        if self.settled:
            return
        if self._final is not None and error.body == TOLD:
            self._show(self._final)  # the backend's own words for its failure
        else:
            self._show(dialect.broken(self.response, error))
            if error.body != TOLD:
                for event in dialect.failed_event(self.response, error, self.log.count):
                    self.log.append(event)
        self.log.end()
        self.status = self.status or error.status
        cancelled = isinstance(error, Cancelled)
        self.settle(Terminal.CANCELLED if cancelled else terminal_of(error), error)

    def _keep(self, data: bytes) -> None:
        name = self.response["id"]
        event, final = dialect.own_event(data, name, self.log.count)
        self._final = final or self._final
        self.log.append(event)

    def _finish(self) -> None:
        assert self._final is not None
        self._show(self._final)
        self.log.end()
        self.settle(Terminal.DONE, None)

    def _show(self, changes: dict[str, Any]) -> None:
        own = {"id": self.response["id"], "background": True}
        self.response = self.response | changes | own
        self._on_response(self.response)
