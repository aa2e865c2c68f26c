"""Whole replies from upstreams that are asked for streams.

Many engines notice that a client left only when they write to it: a whole reply is computed to its
end, for nobody.  Asked for a stream instead they write all the time, and stop.

Invariants: the client sees one whole reply or one error, never a part; leaving closes the
upstream's connection at once; at most ``MAX_REPLY_BYTES`` are gathered.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tpo_mp.dialects.body import with_fields
from tpo_mp.dialects.gather import GATHERERS, Gatherer, add_event
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.types import Call, Dialect, Reply

from .answer import MAX_REPLY_BYTES, TOLD
from .attribution import UNFIT_OUTPUT
from .promise import Promise, run

_COUNTED = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)
_JSON = b"application/json"


class _Wishes(msgspec.Struct):
    logprobs: Any = None
    top_logprobs: Any = None


_wishes = msgspec.json.Decoder(_Wishes).decode


def gathers(call: Call) -> bool:
    """Whether a whole reply to ``call`` can be put together from a stream without loss.

    Log probabilities are the exception: engines leave them out of streams.
    """
    if call.stream or call.dialect not in GATHERERS:
        return False
    if b"logprobs" not in call.body:
        return True
    wishes = _wishes(call.body)
    wanted = wishes.logprobs is not None and wishes.logprobs is not False  # 0 is a wish too
    return not wanted and not wishes.top_logprobs


def gathered(send: Callable[[Call], Awaitable[Reply]], call: Call) -> Promise[Reply]:
    """Ask for ``call`` as a stream; resolves with the whole reply."""
    inner = copy.copy(call)
    inner.stream = True
    changes: dict[str, Any] = {"stream": True}
    if call.dialect in _COUNTED:
        changes["stream_options"] = {"include_usage": True}
    inner.body = with_fields(call.body, **changes)
    # What was asked for here must not be taken out again on its way.
    inner.usage_wanted = True
    whole = _Gathering(call, inner)
    whole.start(send)
    return whole.promise


class _Gathering:
    """The sink of a stream that becomes one reply."""

    __slots__ = ("_call", "_cancel", "_cutter", "_gatherer", "_inner", "_reply", "_size",
                 "promise")  # fmt: skip

    def __init__(self, call: Call, inner: Call) -> None:
        self._call = call
        self._inner = inner
        self._cutter = EventCutter()
        self._gatherer: Gatherer = GATHERERS[call.dialect]()
        self._reply: Reply | None = None
        self._size = 0
        self._cancel: Callable[[], object] | None = None
        self.promise: Promise[Reply] = Promise(self._leave)

    def start(self, send: Callable[[Call], Awaitable[Reply]]) -> None:
        cancel = run(send(self._inner), self._begun)
        if self._reply is None:
            self._cancel = cancel
        self._call.upstream_at = self._inner.upstream_at

    def _begun(self, reply: Reply | None, error: BaseException | None) -> None:
        call, inner = self._call, self._inner
        call.upstream_at, call.first_byte_at = inner.upstream_at, inner.first_byte_at
        if reply is None:
            self.promise.reject(error or RuntimeError("a backend answered nothing"))
        elif reply.stream is None:
            self.promise.resolve(reply)
        elif self.promise.done:
            reply.stream.cancel()
        else:
            self._reply = reply
            self._cancel = reply.stream.cancel
            reply.stream.attach(self)

    def _leave(self) -> None:
        """Nobody wants the reply any more."""
        if self._cancel is not None:
            self._cancel()

    def _stop(self, error: TpoError) -> None:
        self.promise.reject(error)
        self._leave()

    # -- Sink ---------------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        """Gather the events of a piece of the stream."""
        self._size += len(chunk)
        try:
            if self._size > MAX_REPLY_BYTES:
                raise BackendFailure("upstream's reply is too large", reason="endless_reply")
            for _, data in self._cutter.feed(chunk):
                add_event(self._gatherer, data)
        except BackendFailure as e:
            self._stop(e)

    def end(self, error: TpoError | None) -> None:
        """Resolve with the whole, or with what went wrong."""
        if error is not None and error.body == TOLD:
            # In a stream its client would have read the words; here they are still to be said.
            told = self._gatherer.error
            if told is None or error.reason == UNFIT_OUTPUT:
                said = error.message if told is None else told.message
                told = BackendFailure(said, reason=error.reason)
            error = told
        if error is not None:
            self.promise.reject(error)
            return
        source = self._reply
        assert source is not None
        try:
            body = self._gatherer.body()
        except BackendFailure as e:
            self.promise.reject(e)
            return
        reply = Reply(200, body, content_type=_JSON, headers=source.headers, backend=source.backend)
        reply.usage, reply.finish_reason = source.usage, source.finish_reason
        self.promise.resolve(reply)
