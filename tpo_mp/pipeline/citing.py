"""Says in an answer what it was told: ``tpo.citations`` at the top level of its JSON.

A whole body gets one more field.  A stream gets one more event just before the one that ends it:
a chunk without choices in OpenAI's chat and completions, an event ``tpo.citations`` in Anthropic's
messages.  Other dialects' streams have no place for it, and pass as they are.

Invariants: no byte of the backend's is changed or lost; at most one marker's length is held back,
and only while it may be the end.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.errors import TpoError
from tpo_mp.types import Dialect, Reply, Sink, Stream

_DONE: Final = b"data: [DONE]"
_STOP: Final = b"event: message_stop"
_CHUNK: Final = b'{"id":"","object":"%b","created":0,"model":"","choices":[],%%b}'
_MARKS: Final = {
    Dialect.OPENAI_CHAT: (_DONE, b"data: %b\n\n", _CHUNK % b"chat.completion.chunk"),
    Dialect.OPENAI_COMPLETIONS: (_DONE, b"data: %b\n\n", _CHUNK % b"text_completion"),
    Dialect.ANTHROPIC_MESSAGES: (
        _STOP, b"event: tpo.citations\ndata: %b\n\n", b'{"type":"tpo.citations",%b}',
    ),
}  # fmt: skip


def cite(reply: Reply, dialect: Dialect, citations: bytes) -> Reply:
    """Add citations, a JSON list, to an answer that succeeded."""
    field = b'"tpo":{"citations":%b}' % citations
    if reply.stream is not None:
        if dialect in _MARKS:
            mark, event, chunk = _MARKS[dialect]
            reply.stream = _Cited(reply.stream, mark, event % (chunk % field))
        return reply
    body = (reply.body or b"").rstrip()
    if body.endswith(b"}") and len(body) > 2:
        reply.body = b"%b,%b}" % (body[:-1].rstrip(), field)
    return reply


class _Cited:
    """A stream with one more event in front of its last."""

    __slots__ = ("_event", "_fresh", "_held", "_mark", "_origin", "_sink")

    def __init__(self, origin: Stream, mark: bytes, event: bytes) -> None:
        self._origin = origin
        self._sink: Sink | None = None
        self._mark = mark
        self._event = event
        self._held = b""
        self._fresh = True
        """Whether what was passed on ended in a line end."""

    # -- Stream ---------------------------------------------------------------------------------

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
        if self._event:
            chunk, self._held = self._held + chunk, b""
            at = self._find(chunk)
            if at >= 0:
                chunk, self._event = chunk[:at] + self._event + chunk[at:], b""
            else:
                keep = self._may_begin(chunk)
                if keep:
                    chunk, self._held = chunk[:-keep], chunk[-keep:]
        self._pass(chunk)

    def end(self, error: TpoError | None) -> None:
        held, self._held = self._held, b""
        self._pass(held)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)

    def _pass(self, chunk: bytes) -> None:
        if chunk and self._sink is not None:
            self._fresh = chunk.endswith(b"\n")
            self._sink.data(chunk)

    def _find(self, chunk: bytes) -> int:
        """Where a line begins with the mark; -1: none does."""
        if self._fresh and chunk.startswith(self._mark):
            return 0
        at = chunk.find(b"\n" + self._mark)
        return at + 1 if at >= 0 else -1

    def _may_begin(self, chunk: bytes) -> int:
        """How many of the last bytes may be the beginning of the mark."""
        start = chunk.rfind(b"\n") + 1
        last = chunk[start:]
        begins = start > 0 or self._fresh
        return len(last) if last and begins and self._mark.startswith(last) else 0
