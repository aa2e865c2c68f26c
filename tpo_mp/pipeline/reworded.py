"""Completions of upstreams that have words of their own for them.

The call is OpenAI's (``/v1/completions``) on this side; a ``Wording`` says it as the upstream wants
it, and what comes back as OpenAI would have said it.  All else is that of any answer (``Answer``).

Invariants: one wording serves one answer; what cannot be said in the upstream's words is refused
before it is asked (``unsupported_translation``); errors of the upstream pass as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol

from tpo_mp.errors import TpoError
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.types import Call

from .answer import Answer

_EVENTS: Final = b"text/event-stream; charset=utf-8"


class Wording(Protocol):
    """One completion, there and back; its methods raise ``BackendFailure`` for what is none."""

    EVENTS: ClassVar[bool]
    """Whether a stream is server-sent events on the wire, too."""
    body: bytes
    """The request in the upstream's words."""

    def whole(self, body: bytes) -> bytes:
        """A whole reply as OpenAI's."""

    def feed(self, chunk: bytes) -> bytes:
        """A piece of a stream, cut anywhere, as OpenAI's events."""

    def close(self) -> bytes:
        """The stream's body is complete."""


Worded = Callable[[bytes, Call], Wording]
"""Makes the wording of a call from its body in OpenAI's words; raises ``InvalidRequest``."""


class RewordedAnswer(Answer):
    """An answer that is said anew on its way."""

    __slots__ = ("_wording",)

    def __init__(self, wording: Wording, *args: Any) -> None:
        super().__init__(*args)
        self._wording = wording

    def whole(self, head: ResponseHead, body: bytes) -> None:
        self._relabel(head)
        super().whole(head, body)

    def started(self, head: ResponseHead) -> None:
        self._relabel(head)
        super().started(head)

    def data(self, chunk: bytes) -> None:
        if self._events is not None:
            self._say(self._wording.feed, chunk)
        else:
            super().data(chunk)

    def ended(self) -> None:
        if self._events is not None and not self._say(self._wording.close):
            return
        super().ended()

    def _unary(self, head: ResponseHead, body: bytes) -> None:
        try:
            body = self._wording.whole(body)
        except TpoError as e:
            self.promise.reject(e)
            return
        super()._unary(head, body)

    def _relabel(self, head: ResponseHead) -> None:
        if head.status == 200 and self._call.stream and not self._wording.EVENTS:
            head.content_type = _EVENTS

    def _say(self, say: Callable[..., bytes], *what: bytes) -> bool:
        """Whether it could be said."""
        events = self._events
        assert events is not None
        try:
            out = say(*what)
        except TpoError as e:
            self.cancel()
            events.failed(e)
            return False
        if out:
            events.data(out)
        return True
