"""Says in an answer what it was told: ``tpo.citations`` at the top level of its JSON.

A whole body gets one more field.  In a stream, by dialect:

====================================  =========================================================
OpenAI chat, completions              a chunk without choices, before ``[DONE]``
OpenAI responses                      a field of the response that the last event repeats
Anthropic messages                    an event ``tpo.citations``, before ``message_stop``
Anthropic complete, Gemini            an event of its own at the end, after the last
====================================  =========================================================

Invariants: every other event passes byte for byte and at once; at most one marker's length is held
back, and only while it may be the end, and the last event of OpenAI's responses until it is whole;
a stream that breaks off cites nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tpo_mp.errors import TpoError
from tpo_mp.types import Dialect, Reply, Stream

from .between import Between

_DONE: Final = (b"data: [DONE]",)
_STOP: Final = (b"event: message_stop",)
_CHUNK: Final = b'data: {"id":"","object":"%b","created":0,"model":"","choices":[],%%b}\n\n'
_NAMED: Final = b'event: tpo.citations\ndata: {"type":"tpo.citations",%b}\n\n'
_MARKS: Final = {
    Dialect.OPENAI_CHAT: (_DONE, _CHUNK % b"chat.completion.chunk"),
    Dialect.OPENAI_COMPLETIONS: (_DONE, _CHUNK % b"text_completion"),
    Dialect.ANTHROPIC_MESSAGES: (_STOP, _NAMED),
}
_AT_END: Final = {
    Dialect.ANTHROPIC_COMPLETE: _NAMED,
    Dialect.GEMINI: b'data: {"candidates":[],%b}\r\n\r\n',
}
_WHOLE: Final = tuple(
    start % kind
    for kind in (b"completed", b"incomplete")
    for start in (b"event: response.%b", b'data: {"type":"response.%b"')
)
"""How the event begins that repeats a response; not every server names its events."""


def cite(reply: Reply, dialect: Dialect, citations: bytes) -> Reply:
    """Add citations, a JSON list, to an answer that succeeded."""
    field = b'"tpo":{"citations":%b}' % citations
    stream = reply.stream
    if stream is None:
        reply.body = _with_field(reply.body or b"", field)
    elif dialect is Dialect.OPENAI_RESPONSES:
        reply.stream = _InLast(stream, field)
    elif dialect in _MARKS:
        marks, event = _MARKS[dialect]
        reply.stream = _Before(stream, marks, event % field)
    elif dialect in _AT_END:
        reply.stream = _After(stream, _AT_END[dialect] % field)
    return reply


def _with_field(body: bytes, field: bytes) -> bytes:
    """An object with one more field; what is none stays as it is."""
    text = body.rstrip()
    if text.endswith(b"}") and len(text) > 2:
        return b"%b,%b}" % (text[:-1].rstrip(), field)
    return body


class _After(Between):
    """A stream with one more event after its last."""

    __slots__ = ("_event",)

    def __init__(self, origin: Stream, event: bytes) -> None:
        super().__init__(origin)
        self._event = event

    def end(self, error: TpoError | None) -> None:
        if error is None:
            self.data(self._event)
        super().end(error)


class _Before(Between):
    """A stream with one more event in front of the one that begins with a mark."""

    __slots__ = ("_event", "_found", "_fresh", "_held", "_marks")

    def __init__(self, origin: Stream, marks: tuple[bytes, ...], event: bytes) -> None:
        super().__init__(origin)
        self._marks = marks
        self._event = event
        self._held = b""
        self._found = False
        self._fresh = True
        """Whether what was passed on ended in a line end."""

    def data(self, chunk: bytes) -> None:
        if self._found:
            self._rest(chunk)
            return
        chunk, self._held = self._held + chunk, b""
        at = self._find(chunk)
        if at >= 0:
            self._found = True
            super().data(chunk[:at])
            self._rest(self._event + chunk[at:])
            return
        keep = self._may_begin(chunk)
        if keep:
            chunk, self._held = chunk[:-keep], chunk[-keep:]
        if chunk:
            self._fresh = chunk.endswith(b"\n")
            super().data(chunk)

    def end(self, error: TpoError | None) -> None:
        held, self._held = self._held, b""
        super().data(held)
        super().end(error)

    def _rest(self, chunk: bytes) -> None:
        """Take what comes from the mark on."""
        super().data(chunk)

    def _find(self, chunk: bytes) -> int:
        """Where a line begins with a mark; -1: none does."""
        if self._fresh and chunk.startswith(self._marks):
            return 0
        found = [at + 1 for mark in self._marks if (at := chunk.find(b"\n" + mark)) >= 0]
        return min(found, default=-1)

    def _may_begin(self, chunk: bytes) -> int:
        """How many of the last bytes may be the beginning of a mark."""
        start = chunk.rfind(b"\n") + 1
        last = chunk[start:]
        begins = last and (start > 0 or self._fresh)
        return len(last) if begins and any(m.startswith(last) for m in self._marks) else 0


class _InLast(_Before):
    """A stream of a response, in whose last event the response has one more field."""

    __slots__ = ("_field", "_parts")

    def __init__(self, origin: Stream, field: bytes) -> None:
        super().__init__(origin, _WHOLE, b"")
        self._field = field
        self._parts: list[bytes] = []

    def _rest(self, chunk: bytes) -> None:
        if not self._field:
            Between.data(self, chunk)
            return
        self._parts.append(chunk)
        if chunk.endswith(b"\n"):
            self._tell(b"".join(self._parts))

    def end(self, error: TpoError | None) -> None:
        parts, self._parts = self._parts, []
        Between.data(self, b"".join(parts))
        super().end(error)

    def _tell(self, last: bytes) -> None:
        """Pass the last event on once its data is whole."""
        lines = last.splitlines(keepends=True)
        for n, line in enumerate(lines):
            if line.startswith(b"data: ") and line.endswith(b"\n"):
                lines[n] = b"data: %b\n" % self._said(line[6:].rstrip())
                self._parts, self._field = [], b""
                Between.data(self, b"".join(lines))
                return

    def _said(self, data: bytes) -> bytes:
        try:
            event = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            event["response"] = msgspec.Raw(_with_field(bytes(event["response"]), self._field))
        except (msgspec.MsgspecError, KeyError):
            return data
        return msgspec.json.encode(event)
