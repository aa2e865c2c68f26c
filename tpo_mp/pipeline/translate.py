"""Lets a client of one dialect talk to a backend of another, through the one canonical model.

Invariants: nothing here runs when both sides speak the same dialect; what cannot be said is
refused before the upstream is asked, naming the field; a stream is translated event by event and
ends in the client's own terminal event or its own error.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tpo_mp.dialects.canonical import ModelRequest, ReplyFailed, ReplyUsage
from tpo_mp.errors import InvalidRequest, TpoError
from tpo_mp.types import Call, Dialect, Reply, Sink, Stream, Usage

from .codecs import GENERATES, codec
from .promise import Promise, run

if TYPE_CHECKING:
    from tpo_mp.dialects.codec import EventDecoder, EventEncoder

Infer = Callable[[Call], Awaitable[Reply]]
SSE = b"text/event-stream; charset=utf-8"


def speaking(backend: Any, direct: Infer) -> Infer:
    """``direct`` for any client: as it is in the backend's dialects, translated otherwise."""
    dialects: tuple[Dialect, ...] = getattr(backend, "dialects", (Dialect.OPENAI_CHAT,))
    target = next((d for d in dialects if d in GENERATES), None)

    def infer(call: Call) -> Awaitable[Reply]:
        if call.dialect in dialects:
            return direct(call)
        if target is None or call.dialect not in GENERATES:
            said = f"backend {backend.name!r} does not serve {call.dialect.replace('_', ' ')}"
            raise InvalidRequest(said, reason="unsupported_api", param="model")
        return _translated(direct, call, target)

    return infer


def _translated(direct: Infer, call: Call, target: Dialect) -> Promise[Reply]:
    source, sink = codec(call.dialect), codec(target)
    request = source.request_to_canonical(call.body)
    inner = copy.copy(call)
    inner.dialect = target
    inner.body = sink.request_from_canonical(request)
    # The body made here asks for usage; the client's encoder decides whether it is shown.
    inner.usage_wanted = True
    out: Promise[Reply] = Promise()

    def done(reply: Reply | None, error: BaseException | None) -> None:
        call.upstream_at, call.first_byte_at = inner.upstream_at, inner.first_byte_at
        if reply is None:
            out.reject(_own(error))
            return
        try:
            out.resolve(_reply(reply, call, request, target))
        except TpoError as e:
            if reply.stream is not None:
                reply.stream.cancel()
            out.reject(e)

    out.cancel_with = run(direct(inner), done)
    call.abort = inner.abort
    return out


def _own(error: BaseException | None) -> BaseException:
    """The failure without the other dialect's error body."""
    if isinstance(error, TpoError):
        error.body = None
        return error
    return error or RuntimeError("a backend answered nothing")


def _reply(reply: Reply, call: Call, request: ModelRequest, target: Dialect) -> Reply:
    source, sink = codec(call.dialect), codec(target)
    if reply.stream is not None:
        translated = _Translation(reply, sink.StreamDecoder(), source.StreamEncoder(request))
        out = Reply(200, None, stream=translated, content_type=SSE, headers=reply.headers)
        translated.reply = out
    else:
        assert reply.body is not None
        canonical = sink.reply_to_canonical(reply.body)
        out = Reply(200, source.reply_from_canonical(canonical, request), headers=reply.headers)
    out.backend, out.usage, out.finish_reason = reply.backend, reply.usage, reply.finish_reason
    return out


class _Translation:
    """A stream in the client's dialect, made of one in the backend's."""

    def __init__(self, origin: Reply, decoder: EventDecoder, encoder: EventEncoder) -> None:
        assert origin.stream is not None
        self._origin: Stream = origin.stream
        self._source = origin
        self._decoder = decoder
        self._encoder = encoder
        self._sink: Sink | None = None
        self.reply: Reply = origin

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._origin.attach(self)

    def pause(self) -> None:
        self._origin.pause()

    def resume(self) -> None:
        self._origin.resume()

    def cancel(self) -> None:
        self._sink = None
        self._origin.cancel()

    # -- Sink of the backend's stream -----------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        try:
            failed = self._encode(self._decoder.feed(chunk))
        except TpoError as e:
            failed = e
        if failed is not None:
            self._origin.cancel()
            self._end(failed)

    def end(self, error: TpoError | None) -> None:
        if self._sink is None:
            return
        if error is None:
            try:
                error = self._encode(self._decoder.close())
            except TpoError as e:
                error = e
        else:
            error.body = None
        self._end(error)

    def _encode(self, events: list[Any]) -> TpoError | None:
        """Write events; answers the failure among them, which the client's dialect must tell."""
        out: list[bytes] = []
        for event in events:
            if isinstance(event, ReplyFailed):
                self._write(out)
                return event.error
            if isinstance(event, ReplyUsage):
                self.reply.usage = Usage(event.usage.prompt, event.usage.completion)
            out.append(self._encoder.encode(event))
        self._write(out)
        return None

    def _write(self, parts: list[bytes]) -> None:
        data = b"".join(parts)
        if data and self._sink is not None:
            self._sink.data(data)

    def _end(self, error: TpoError | None) -> None:
        self.reply.finish_reason = self._source.finish_reason or self.reply.finish_reason
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)
