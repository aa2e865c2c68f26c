"""One call's way back to its client: reply, stream, error or nothing, and the account of it.

Invariants: exactly one terminal state per delivery, told to the gateway exactly once; after the
client left nothing is written; an error after the first byte ends the stream with the dialect's
error event and a proper end of body, so that no client mistakes it for success.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, cast

from tpo_mp.errors import (
    BackendFailure,
    Cancelled,
    ConnectionCut,
    DeadlineExceeded,
    Fault,
    Shed,
    TpoError,
)
from tpo_mp.types import DONE, NO_DEADLINE, Call, Reply, Stream, Terminal

from .answer import TOLD
from .codecs import codec
from .gateway import Gateway
from .poison import REASON

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

    from .promise import Promise

_BACKEND = b"x-tpo-backend: "
_LINES = (
    b"%bx-request-id: %b\r\nx-tpo-call-id: %b\r\nx-tpo-shard: %d\r\n" + _BACKEND + b"%b\r\n"
    b"server-timing: gateway;dur=%.2f, upstream;dur=%.2f\r\n"
)
_NOWHERE = _BACKEND + b"\r\n"
_OF_LIMITS = (b"x-ratelimit-", b"anthropic-ratelimit-")
_RETRY, _NO_RETRY = b"x-should-retry: true\r\n", b"x-should-retry: false\r\n"
PATIENCE_S = 60.0
"""The longest wait that SDKs sit out; told of a longer one, Anthropic's asks again at once."""
ON_REQUEST = "cancelled_on_request"
"""Reason of a ``Cancelled`` that the call's own client must hear of: it did not leave."""
SSE_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class Delivery:
    """Carries one call's outcome to one exchange, in the call's own dialect.

    Surfaces with other bodies override ``send`` and ``send_error`` (and the stream's three).
    """

    __slots__ = (
        "_gateway", "bytes_in", "bytes_out", "call", "deadline", "error", "exchange", "filed_at",
        "finished_at", "peer", "promise", "reply", "settled", "started", "status", "template",
        "terminal",
    )  # fmt: skip

    lettered: ClassVar[bool] = True
    """Whether a call that could not be finished leaves a dead letter."""
    id_line: ClassVar[bytes] = b""
    """One more response header line with the request's id, where clients look for it."""

    def __init__(self, gateway: Gateway, exchange: Exchange, call: Call) -> None:
        self._gateway = gateway
        self.exchange = exchange
        self.call = call
        endpoint = exchange.head.endpoint
        self.template = endpoint.template if endpoint is not None else ""
        self.bytes_in = len(exchange.body)
        # A proxy's connection may carry another client's request by the time this one is recorded.
        self.peer = exchange.peer
        self.bytes_out = 0
        self.promise: Promise[Reply] | None = None
        self.reply: Reply | None = None
        self.started = False
        self.settled = False
        self.status = 0
        self.error: TpoError | None = None
        self.terminal: Terminal = DONE
        self.finished_at = 0.0
        self.deadline = call.deadline
        self.filed_at = 0.0
        exchange.on_disconnect = self.left

    # -- outcome of the chain -----------------------------------------------------------------

    def done(self, reply: Reply | None, error: BaseException | None) -> None:
        """Take the chain's outcome."""
        if self.settled:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            elif error is not None:
                forget_frames(error)
        elif reply is None:
            self.fail(_answerable(as_tpo(error)))
        else:
            try:
                self._deliver(reply)
            except Exception as e:  # a malformed reply must not leave the client waiting
                if self.settled:
                    raise
                self.fail(UnexpectedError(e))

    def _deliver(self, reply: Reply) -> None:
        self.reply = reply
        if reply.stream is None:
            self.send(reply)
        elif self.call.stream:
            self.begin(reply)
            reply.stream.attach(self)
        else:
            reply.stream.cancel()
            said = "the backend streamed what nobody asked to be streamed"
            self.fail(BackendFailure(said, reason="bad_upstream_body"))

    def send(self, reply: Reply) -> None:
        """Send a whole reply."""
        body = reply.body
        assert body is not None
        self.status = reply.status
        self.bytes_out = len(body)
        self.exchange.respond(reply.status, body, reply.content_type, self.lines(reply))
        self.settle(DONE, None)

    @property
    def asked(self) -> bytes:
        """The body of the client's request."""
        return self.call.body

    @staticmethod
    def told(content_type: bytes, body: bytes, /) -> tuple[bytes, bytes]:
        """A stream that is whole already, as the client sees it."""
        return content_type, body

    def begin(self, reply: Reply) -> None:
        """Send the head of a streamed reply."""
        self.started = True
        self.status = reply.status
        stream = cast("Stream", reply.stream)
        self.exchange.begin(reply.status, reply.content_type, self.lines(reply) + SSE_LINES, stream)

    def fail(self, error: TpoError) -> None:
        """End the call with an error, in band if the stream has begun."""
        if self.settled:
            return
        if isinstance(error, Cancelled) and error.reason != ON_REQUEST:
            self.settle(Terminal.CANCELLED, error)
            return
        if isinstance(error, ConnectionCut):
            self.cut(error)
            return
        self.status = codec(self.call.dialect).error_status(error)
        if self.started:
            self.send_error_event(error)
        else:
            self.send_error(error)
        self.settle(terminal_of(error), error)

    def cut(self, error: ConnectionCut) -> None:
        """End the call by breaking the connection, after what was written has left."""
        self.status = error.status
        hard = error.reason == error.RESET
        asyncio.get_running_loop().call_soon(partial(self.exchange.abort, hard=hard))
        self.settle(Terminal.FAILED, error)

    def send_error(self, error: TpoError) -> None:
        """Send a whole error response."""
        spoken = codec(self.call.dialect)
        body = spoken.error_body(error, self.call.client_request_id or self.call.id)
        self.bytes_out = len(body)
        self.exchange.respond(
            self.status, body, extra=self.lines(None) + retry_lines(error) + error.lines
        )

    def send_error_event(self, error: TpoError) -> None:
        """Tell a client in mid-stream, then end the body."""
        if error.body != TOLD:
            self.data(codec(self.call.dialect).error_event(error))
        self.exchange.finish()

    # -- Sink of the stream -------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        self.bytes_out += len(chunk)
        self.exchange.write(chunk)

    def end(self, error: TpoError | None) -> None:
        if error is not None:
            self.fail(_answerable(error))
        elif not self.settled:
            self.exchange.finish()
            self.settle(DONE, None)

    # -- the client, the clock and the host ---------------------------------------------------

    def left(self) -> None:
        """The client went away."""
        self.stop(Cancelled("the client closed the connection"))

    def cancel(self) -> None:
        """Somebody asked, by the call's id, that it ends."""
        self.stop(Cancelled("the call was cancelled on request", reason=ON_REQUEST))

    def expire(self) -> None:
        """The caller's deadline passed."""
        self.stop(DeadlineExceeded("the deadline passed before the answer was complete"))

    def stop(self, error: TpoError) -> None:
        """End the call now, whatever it waits for."""
        if self.settled:
            return
        reply, promise = self.reply, self.promise
        self.fail(error)
        if reply is not None:
            if reply.stream is not None:
                reply.stream.cancel()
        elif promise is not None:
            promise.cancel()

    def settle(self, terminal: Terminal, error: TpoError | None) -> None:
        """Close the account."""
        if not self.settled:
            self.settled = True
            self.terminal = terminal
            self.error = error
            self.finished_at = monotonic()
            self.deadline = NO_DEADLINE
            if error is not None and not isinstance(error, UnexpectedError):
                forget_frames(error)
            self._gateway.settled(self)

    def sent(self) -> int:
        """Bytes of a stream that the client was sent so far; -1 when not known."""
        return self.bytes_out if self.started else 0

    def lines(self, reply: Reply | None) -> bytes:
        """The gateway's own response header lines; no backend is named where none was reached."""
        call = self.call
        backend, asked, name = call.backend, call.client_request_id, call.id.encode()
        upstream_ms = (call.first_byte_at - call.upstream_at) * 1e3 if call.first_byte_at else 0.0
        ours_ms = (monotonic() - call.started_at) * 1e3 - upstream_ms
        passed = b""
        if reply is not None:
            passed = reply.headers
            if call.limit_lines:
                passed = limits_first(call.limit_lines, passed)
        lines = _LINES % (
            passed,
            asked.encode() if asked else name,
            name,
            call.shard,
            backend.encode(),
            max(ours_ms, 0.0),
            upstream_ms,
        )
        if call.attempts > 1:
            lines += b"x-tpo-attempts: %d\r\n" % call.attempts
        if call.cache:
            lines += b"x-tpo-cache: %b\r\n" % call.cache.encode()
        return lines if backend else lines.replace(_NOWHERE, b"", 1)


def limits_first(ours: bytes, passed: bytes) -> bytes:
    """Our limits and an upstream's header lines, without what that says of limits of its own.

    A client reads one set of them, and obeys ours first: what is left of the gateway's account
    with a provider is none of its business.
    """
    if b"ratelimit-" in passed:
        kept = (line for line in passed.splitlines(True) if not line.startswith(_OF_LIMITS))
        passed = b"".join(kept)
    return passed + ours


def retry_lines(error: TpoError) -> bytes:
    """What tells SDKs whether and when to come back."""
    if error.code == "over_budget" or error.reason == REASON:
        return _NO_RETRY
    busy = error.status in (429, 503)
    # An upstream's refusal may be one that waiting does not help: it says so itself, or not.
    ours = busy and not error.reason.startswith("upstream_")
    should = _RETRY if ours else b""
    seconds = error.retry_after_s
    if seconds is None:
        if not busy or b"retry-after" in error.lines:
            return should
        seconds = 1.0
    # Rounded up: who comes back a moment early is refused again.
    ms = math.ceil(seconds * 1e3 - 1e-6)
    pause = (max(1, math.ceil(ms / 1e3)), ms)
    if ours and seconds > PATIENCE_S:
        should = _NO_RETRY
    return b"retry-after: %d\r\nretry-after-ms: %d\r\n%b" % (*pause, should)


def as_tpo(error: BaseException | None) -> TpoError:
    """The error a client may see for whatever ended a call."""
    if isinstance(error, TpoError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("the call was cancelled")
    return UnexpectedError(error)


def _answerable(error: TpoError) -> TpoError:
    """Something inside gave the call up, yet the client is there: it must hear of it."""
    if isinstance(error, Cancelled):
        return Fault("the call was given up inside the gateway", reason="given_up")
    return error


class UnexpectedError(Fault):
    """A defect inside the pipeline; carries its cause for the log, never for the client."""

    def __init__(self, cause: BaseException | None) -> None:
        super().__init__("internal error", reason="internal_error")
        self.__cause__ = cause


def forget_frames(error: BaseException) -> None:
    """Drop the frames an error came through, and those of its causes.

    They hold the call, which holds the error: a circle only the garbage collector could open.  A
    defect keeps its frames until it is in the log.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def terminal_of(error: TpoError) -> Terminal:
    """How a call ended that ended with ``error`` and whose client heard of it."""
    if isinstance(error, Shed):
        return Terminal.SHED
    if isinstance(error, DeadlineExceeded):
        return Terminal.EXPIRED
    if isinstance(error, Cancelled):
        return Terminal.CANCELLED
    return Terminal.FAILED
