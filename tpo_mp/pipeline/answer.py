"""Turns an upstream's response into a ``Reply``, in any dialect, watching without re-writing.

A whole body is checked and its usage read.
A stream becomes a ``Reply`` at its first event; from there whole events go to the sink as they
came, and the dialect's watch sees usage, finish reason and the terminal event go by.

Invariants: the reply is resolved or rejected exactly once; after it is resolved, failures reach
the sink's ``end``; a stream that stops without its terminal event is an error; a usage count that
only the gateway asked for never reaches the client.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.sse import MAX_EVENT_BYTES
from tpo_mp.errors import BackendFailure, BackendTimeout, RateLimited, Rejected, TpoError
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.http.upstream import UpstreamExchange
from tpo_mp.types import Call, Reply, Sink

from .attribution import CALLER_LIMITED, CONTEXT_TOO_SMALL, UNFIT_OUTPUT
from .codecs import codec
from .promise import Promise

MAX_REPLY_BYTES = 32 << 20
MAX_ERROR_BYTES = 1 << 20
MAX_ERROR_LINES_BYTES = 2048  # they cross the mesh in one small frame
MAX_STREAM_BYTES = 1 << 30
_SSE = b"text/event-stream"
_NOT_PARSED = "[json.exception."
_TOO_LONG = (
    b'"exceed_context_size_error"',
    b'"context_length_exceeded"',
    b"maximum context length",
)
"""What llama.cpp, whoever follows OpenAI, and vLLM say of a prompt that is too long for them."""
_UNFIT = b"The model produced output that does not match the expected"
"""llama.cpp's word for a text that it cannot take apart, one that is no UTF-8 for example."""
TOLD = b""
"""Error body of a failure the client has read already, in the stream itself."""
_DEAD = b'"generation thread died"'
"""``mlx_lm``'s server, which says so with 404 ever after."""
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_FIELD_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\r\n", b"\n")


class Answer(UpstreamExchange):
    """One request to the upstream and the reply it becomes."""

    __slots__ = ("_backend", "_call", "_client_key", "_clock", "_events", "_head", "_parts",
                 "_size", "_strip", "promise")  # fmt: skip

    def __init__(
        self,
        call: Call,
        request: bytes,
        backend: str,
        clock: Callable[[], float],
        strip_usage: bool,
        client_key: bool,
    ) -> None:
        """``strip_usage``: the usage event was asked for by us; ``client_key``: not our key."""
        self.request = request
        self.connection = None
        self.over = False
        self.retried = False
        self.queued_at = None
        self.promise: Promise[Reply] = Promise(self.cancel)
        self._call = call
        self._backend = backend
        self._clock = clock
        self._strip = strip_usage
        self._client_key = client_key
        self._events: Events | None = None
        self._parts: list[bytes] | None = None

    def whole(self, head: ResponseHead, body: bytes) -> None:
        call = self._call
        call.first_byte_at = self._clock()
        if head.status == 200 and not call.stream:
            self._unary(head, body)
        elif head.status != 200:
            self.promise.reject(upstream_error(head, body, self._client_key))
        elif head.content_type.startswith(_SSE):
            self.started(head)
            if body:
                self.data(body)
            self.ended()
        else:
            said = "upstream answered a stream request with another media type"
            self.promise.reject(BackendFailure(said, reason="bad_upstream_body"))

    def _unary(self, head: ResponseHead, body: bytes) -> None:
        try:
            if not body.isascii():
                body.decode()
            usage = codec(self._call.dialect).usage_of(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = "upstream answered 200 with a body that is no JSON object"
            self.promise.reject(BackendFailure(said, reason="bad_upstream_body"))
            return
        reply = Reply(200, body)
        reply.content_type = head.content_type
        reply.headers = head.passed
        reply.backend = self._backend
        reply.usage = usage
        self.promise.resolve(reply)

    def started(self, head: ResponseHead) -> None:
        self._call.first_byte_at = self._clock()
        if head.status == 200 and self._call.stream and head.content_type.startswith(_SSE):
            self._events = Events(self, self._call, self._backend, head, self._strip)
        else:
            self._head = head
            self._parts = []
            self._size = 0

    def data(self, chunk: bytes) -> None:
        if self._events is not None:
            self._events.data(chunk)
            return
        assert self._parts is not None
        self._size += len(chunk)
        if self._size > (MAX_REPLY_BYTES if self._head.status == 200 else MAX_ERROR_BYTES):
            self.cancel()
            self.failed(BackendFailure("upstream's reply is too large", reason="endless_reply"))
        else:
            self._parts.append(chunk)

    def ended(self) -> None:
        if self._events is not None:
            self._events.ended()
        else:
            assert self._parts is not None
            self.whole(self._head, b"".join(self._parts))

    def failed(self, error: TpoError) -> None:
        if self._events is not None:
            self._events.failed(error)
        else:
            self.promise.reject(error)


class _Gone:
    """What an ended stream has instead of its request, which holds the stream: no circle stays."""

    promise: Promise[Reply] = Promise()

    def pause(self) -> None:
        """Nothing comes."""

    def resume(self) -> None:
        """Nothing comes."""

    def cancel(self) -> None:
        """Nothing is under way."""


_GONE = _Gone()
_GONE.promise.cancel()  # no late failure is kept in it


class Events:
    """The ``Stream`` of a reply: events as they come, watched but not re-written."""

    __slots__ = ("_answer", "_backend", "_buffer", "_call", "_ended", "_error",
                 "_head", "_held", "_held_bytes", "_reply", "_sink", "_size", "_strip", "_tail",
                 "_unfit", "_watch")  # fmt: skip

    def __init__(
        self, answer: Answer, call: Call, backend: str, head: ResponseHead, strip: bool
    ) -> None:
        self._answer: Answer | _Gone = answer
        self._call = call
        self._backend = backend
        self._head = head
        self._strip = strip
        self._reply: Reply | None = None
        self._size = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._tail = b""
        self._sink: Sink | None = None
        self._buffer: list[bytes] = []
        self._ended = False
        self._error: TpoError | None = None
        self._watch = codec(call.dialect).watch()
        self._unfit = False

    # -- from upstream ------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        """Take body bytes, cut anywhere."""
        self._size += len(chunk)
        if self._held:
            tail = self._tail + chunk
            if b"\n\n" not in tail and b"\r\n\r\n" not in tail:
                self._hold(chunk)
                return
            self._held.append(chunk)
            chunk = b"".join(self._held)
            self._held = []
        if chunk.endswith(_EVENT_ENDS) and self._size <= MAX_STREAM_BYTES:
            self._held_bytes = 0
        else:
            chunk = self._cut(chunk)
            if not chunk:
                return
        watch = self._watch
        watch.feed(chunk)
        if watch.failed and _UNFIT in chunk:
            self._unfit = True
        if self._strip and (b'"usage":{' in chunk or b'"usage": {' in chunk):
            chunk = _without_usage(chunk)
            if not chunk:
                return
        if self._sink is not None:
            self._sink.data(chunk)
        elif self._reply is None:
            self._first(chunk)
        else:
            self._buffer.append(chunk)

    def ended(self) -> None:
        """The upstream's body is complete."""
        rest, self._held = b"".join(self._held), []
        watch, reply = self._watch, self._reply
        if rest and reply is not None and not watch.ended:
            watch.feed(rest.rstrip() + b"\n\n")
            if watch.ended:
                # Only its blank line is missing.  Half an event is dropped: an error follows it.
                self._pass(rest)
        if reply is None:
            said = "upstream ended the stream before its first event"
            self.failed(BackendFailure(said, reason="truncated_stream"))
            return
        reply.usage = watch.usage or reply.usage
        reply.finish_reason = watch.finish_reason
        if watch.failed:
            said = "upstream reported an error in mid-stream"
            reason = UNFIT_OUTPUT if self._unfit else "upstream_error_event"
            self._finish(BackendFailure(said, reason=reason, body=TOLD))
        elif watch.ended:
            self._finish(None)
        else:
            said = "upstream ended the stream without its terminal event"
            self._finish(BackendFailure(said, reason="truncated_stream"))

    def failed(self, error: TpoError) -> None:
        """The upstream broke off, or the call is ended."""
        if self._reply is None:
            self._answer.promise.reject(error)
        else:
            self._finish(error)

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        buffered, self._buffer = self._buffer, []
        for chunk in buffered:
            sink.data(chunk)
        if self._ended and self._sink is not None:
            self._sink = None
            sink.end(self._error)

    def pause(self) -> None:
        self._answer.pause()

    def resume(self) -> None:
        self._answer.resume()

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self._sink = None
        answer = self._answer
        self._let_go()
        answer.cancel()

    # -- inside -------------------------------------------------------------------------------

    def _cut(self, chunk: bytes) -> bytes:
        """What may go on of a chunk that ends inside an event."""
        # Whole events only: the first is checked, a usage event may have to go, and an error event
        # must not land in the middle of another.
        cut = max(chunk.rfind(b"\n\n") + 2, chunk.rfind(b"\r\n\r\n") + 4)
        cut = cut if cut >= 4 else 0
        self._held_bytes = 0
        self._tail = b""
        return chunk[:cut] if self._hold(chunk[cut:]) else b""

    def _hold(self, piece: bytes) -> bool:
        """Keep a piece of an event until its end comes; False when it never will."""
        self._held_bytes += len(piece)
        if self._held_bytes > MAX_EVENT_BYTES or self._size > MAX_STREAM_BYTES:
            self._break(BackendFailure("upstream sent an endless event", reason="endless_reply"))
            return False
        if piece:
            # Joined once at its end: a long event comes in many reads.
            self._held.append(piece)
            self._tail = (self._tail + piece)[-3:]
        return True

    def _first(self, chunk: bytes) -> None:
        """The first whole event: from here on the client sees what comes."""
        if self._answer is _GONE:
            return
        if not chunk.startswith(_FIELD_STARTS) or not _is_sound(chunk):
            self._break(BackendFailure("upstream sent no event stream", reason="bad_upstream_body"))
            return
        self._buffer.append(chunk)
        head = self._head
        reply = Reply(200, None, stream=self, content_type=head.content_type, headers=head.passed)
        reply.backend = self._backend
        reply.usage = self._watch.usage
        self._reply = reply
        self._answer.promise.resolve(reply)

    def _pass(self, chunk: bytes) -> None:
        if self._sink is not None:
            self._sink.data(chunk)
        else:
            self._buffer.append(chunk)

    def _break(self, error: TpoError) -> None:
        self._answer.cancel()
        self.failed(error)

    def _finish(self, error: TpoError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._let_go()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)

    def _let_go(self) -> None:
        self._reply, self._answer = None, _GONE


def _without_usage(chunk: bytes) -> bytes:
    """Take out the usage event the gateway asked for."""
    separator = b"\r\n\r\n" if chunk.endswith(b"\r\n\r\n") else b"\n\n"
    blocks = chunk.split(separator)[:-1]
    return b"".join(b + separator for b in blocks if b'"usage"' not in b or not _only_usage(b))


def _only_usage(block: bytes) -> bool:
    """Whether an event holds usage and no choice."""
    for data in openai_chat.event_data(block):
        try:
            seen = openai_chat.decode_reply(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if seen.usage is not None:
            return not seen.choices
    return False


def _is_sound(chunk: bytes) -> bool:
    """Whether it is text, and the first data payload an object or the terminator."""
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    for data in openai_chat.event_data(chunk):
        if data == b"[DONE]":
            return True
        try:
            msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return True
    return True


def upstream_error(head: ResponseHead, body: bytes, client_key: bool) -> TpoError:
    """Map an upstream's error status to what the client should see and whether to try again."""
    if head.status in (401, 403) and not client_key:
        said = "the upstream refused this gateway's credential"
        return BackendFailure(said, reason="upstream_auth_failed")
    error = _of_status(head, body)
    if client_key and head.status == 429:
        error.reason = CALLER_LIMITED
    error.lines = _told_to_clients(head)
    return error


def _of_status(head: ResponseHead, body: bytes) -> TpoError:
    status = head.status
    error = _error_of(body)
    shown = None
    if body[:1] == b"{" and head.content_type.startswith(b"application/json"):
        shown = None if isinstance(error, str) else body  # a bare string is no dialect's error
    said = _message(error) or f"upstream answered {status}"
    retry_after = head.retry_after
    if status == 429:
        return RateLimited(
            said, reason="upstream_rate_limited", retry_after_s=retry_after, body=shown
        )
    if status == 500 and said.startswith(_NOT_PARSED):
        status = 400  # llama.cpp's word for a body that it does not understand
    if status == 400 and any(words in body for words in _TOO_LONG):
        return Rejected(said, reason=CONTEXT_TOO_SMALL, status=status, body=shown)
    if status == 500 and _UNFIT in body:
        return BackendFailure(said, reason=UNFIT_OUTPUT)
    if status == 404 and _DEAD in body:
        return BackendFailure(said, reason="engine_failed")
    if 400 <= status < 500 and status != 408:
        return Rejected(said, reason="upstream_rejected", status=status, body=shown)
    if status in (408, 504):
        return BackendTimeout(said, reason="upstream_timeout", retry_after_s=retry_after)
    if status in (503, 529):
        return BackendFailure(
            said, reason="upstream_overloaded", status=503, retry_after_s=retry_after
        )
    return BackendFailure(said, reason="upstream_error", retry_after_s=retry_after)


def _told_to_clients(head: ResponseHead) -> bytes:
    """The header lines that go with an error; a pause in seconds is told by the error itself."""
    if not head.passed:
        return b""
    kept, room = b"", MAX_ERROR_LINES_BYTES
    for line in head.passed.splitlines(keepends=True):
        room -= len(line)
        if room < 0:
            break
        if head.retry_after is None or not line.startswith(b"retry-after"):
            kept += line
    return kept


class _ErrorObject(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject | str | None = None


def _error_of(body: bytes) -> _ErrorObject | str | None:
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _message(error: _ErrorObject | str | None) -> str:
    said = error.message if isinstance(error, _ErrorObject) else error or ""
    return "".join(c for c in said if c.isprintable())[:500]
