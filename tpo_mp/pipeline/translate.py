"""Lets a client of one dialect talk to a backend of another, through the one canonical model.

Invariants: nothing here runs when both sides speak the same dialect; what cannot be said is
refused before the upstream is asked, naming the field; a stream is translated event by event and
ends in the client's own terminal event or its own error event.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from time import time
from typing import Any

from tpo_mp.dialects.canonical import ModelRequest
from tpo_mp.dialects.translate import StreamTranslator, render_reply
from tpo_mp.errors import InvalidRequest, TpoError
from tpo_mp.types import Call, Dialect, Reply, Stream, Usage

from .answer import TOLD
from .between import Between
from .codecs import GENERATES, codec
from .delivery import as_tpo
from .promise import Promise, run

Infer = Callable[[Call], Awaitable[Reply]]
SSE = b"text/event-stream; charset=utf-8"
_OF_A_DIALECT = (b"anthropic-", b"openai-")
"""Headers that mean something to one API only; they stay here when it is another's turn."""


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
    inner.forward = _lines_without(call.forward, _OF_A_DIALECT)
    # The body made here asks for usage; the client's encoder decides whether it is shown.
    inner.usage_wanted = True
    out: Promise[Reply] = Promise()

    def done(reply: Reply | None, error: BaseException | None) -> None:
        call.upstream_at, call.first_byte_at = inner.upstream_at, inner.first_byte_at
        if reply is None:
            out.reject(_own(error))
            return
        try:
            translated = _reply(reply, call, request, target)
        except Exception as e:  # noqa: BLE001 - a defect in a codec must not leave the client waiting
            if reply.stream is not None:
                reply.stream.cancel()
            out.reject(e)
            return
        out.resolve(translated)

    out.cancel_with = run(direct(inner), done)
    return out


def _lines_without(lines: bytes, prefixes: tuple[bytes, ...]) -> bytes:
    """Header lines but those whose names begin so."""
    if not lines:
        return lines
    return b"".join(line for line in lines.splitlines(True) if not line.startswith(prefixes))


def _own(error: BaseException | None) -> BaseException:
    """The failure without the other dialect's error body and headers."""
    if isinstance(error, TpoError):
        error.body = None
        error.lines = _lines_without(error.lines, _OF_A_DIALECT)
        return error
    return error or RuntimeError("a backend answered nothing")


def _reply(reply: Reply, call: Call, request: ModelRequest, target: Dialect) -> Reply:
    source, sink = codec(call.dialect), codec(target)
    created, broken_off = int(time()), False
    if reply.stream is not None:
        translated = _Translation(
            reply, reply.stream, StreamTranslator(sink, source, request, created=created)
        )
        out = Reply(200, None, stream=translated, content_type=SSE)
        translated.reply = out
    else:
        assert reply.body is not None
        canonical = sink.reply_to_canonical(reply.body)
        out = Reply(200, render_reply(canonical, source, request, created=created))
        broken_off = any(choice.stop == "abort" for choice in canonical.choices)
    out.headers = _lines_without(reply.headers, _OF_A_DIALECT)
    out.backend, out.usage, out.finish_reason = reply.backend, reply.usage, reply.finish_reason
    if broken_off:
        out.finish_reason = "abort"  # not every dialect has a word for it
    return out


class _Translation(Between):
    """A stream in the client's dialect, made of one in the backend's."""

    __slots__ = ("_source", "_translator", "reply")

    def __init__(self, source: Reply, origin: Stream, translator: StreamTranslator) -> None:
        super().__init__(origin)
        self._source = source
        self._translator = translator
        self.reply = source

    def data(self, chunk: bytes) -> None:
        sink, translator = self._sink, self._translator
        if sink is None:
            return
        try:
            out = translator.feed(chunk)
        except Exception as e:  # noqa: BLE001 - a defect in a codec ends one stream, not the shard
            self._origin.cancel()
            self._end(as_tpo(e))
            return
        if out:
            sink.data(out)
        if translator.error is not None:
            self._origin.cancel()
            self._end(_told(translator.error))

    def end(self, error: TpoError | None) -> None:
        sink, translator = self._sink, self._translator
        if sink is None:
            return
        out = translator.close() if error is None else translator.fail(error)
        if out:
            sink.data(out)
        failed = translator.error or error
        self._end(None if failed is None else _told(failed))

    def _end(self, error: TpoError | None) -> None:
        seen, reply, source = self._translator, self.reply, self._source
        usage = seen.usage
        reply.usage = (
            source.usage if usage is None else Usage(usage.prompt, usage.completion, usage.cached)
        )
        reply.finish_reason = source.finish_reason or seen.finish_reason
        super().end(error)


def _told(error: TpoError) -> TpoError:
    """The failure that the client has read already, in the stream itself."""
    error.body = TOLD
    return error
