"""One stream made of several: what broke off is gone on with elsewhere, in the same reply.

The first part passes as it came, and is read along the way: its words are kept, while they are
plain words of one answer.  When it breaks, ``Rest`` asks for the rest, and what comes is said anew
in the client's dialect, as if it had been one stream; a comment marks the seam.

::

    the client sees   first part | ": continued by NAME" | rest in the first part's id | end
    its usage         prompt of the rest less what was said before it | rest plus that

What was said is counted by events, each of them a token at least, or as the broken stream counted
itself; sums are therefore exact, and only the border between prompt and completion may be off.

Invariants: no word comes twice and none is left out; a stream that is not gone on with ends as if
this were not here; at most ``most`` characters are kept.
Known weakness: the model goes on from its words alone, so a word it was in the middle of may be
finished otherwise; fields that only the first backend adds to its events end with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from tpo_mp.dialects.canonical import (
    BlockStart,
    BlockStop,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingDelta,
    ToolInputDelta,
)
from tpo_mp.dialects.codec import EventDecoder, EventEncoder
from tpo_mp.errors import TpoError
from tpo_mp.types import Call, Reply, Usage

from .between import Spliced
from .codecs import codec
from .delivery import as_tpo

_INDEXED: Final = (
    BlockStart, BlockStop, TextDelta, ToolInputDelta, ThinkingDelta, SignatureDelta
)  # fmt: skip
_QUIET: Final = (ReplyUsage, ReplyEnd, ReplyFailed)


class SpokenWords:
    """What a reply has said; ``why`` it cannot be gone on with, empty while it can."""

    __slots__ = ("_left", "_words", "start", "tokens", "why")

    def __init__(self, most: int) -> None:
        self._left = most
        self._words: list[str] = []
        self.start: ReplyStart | None = None
        self.tokens = 0
        self.why = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._words)

    def note(self, event: StreamEvent) -> None:
        """Take the next event."""
        if type(event) is TextDelta and not event.choice:
            self._words.append(event.text)
            self.tokens += 1
            self._left -= len(event.text)
            if self._left < 0:
                self._give_up("too_long")
        elif isinstance(event, ReplyStart):
            self.start = self.start or event
        elif isinstance(event, BlockStart):
            if type(event.block) is not TextBlock or event.index or event.choice:
                self._give_up("not_text")
        elif isinstance(event, BlockStop | ReplyStop):
            self._give_up("complete")
        elif isinstance(event, ReplyUsage):
            self.tokens = max(self.tokens, event.usage.completion)
        elif isinstance(event, TextDelta | ToolInputDelta | ThinkingDelta | SignatureDelta):
            self._give_up("not_text")

    def _give_up(self, why: str) -> None:
        self.why = self.why or why
        self._words = []


class GoesOn(Protocol):
    """Who asks for the rest, and books what that takes."""

    def book(self, call: Call, backend: str, usage: Usage | None) -> None:
        """Count what a backend was told that another one had said, for a call."""

    def go_on(self, stream: Continuing, error: TpoError) -> Callable[[], None] | None:
        """Ask, and call ``stream.rest`` or ``stream.no_rest`` once, now or later.

        Answers what ends the asking; ``None`` when it is over.
        """


class Continuing(Spliced):
    """The stream of a reply that may be gone on with; also the sink of its parts."""

    __slots__ = ("_before", "_broke_with", "_cancel", "_decoder", "_encoder", "_goes", "_held",
                 "_open", "_part", "_seam", "_shift", "_unsent", "call", "reply", "said",
                 "tries")  # fmt: skip

    def __init__(self, goes: GoesOn, call: Call, reply: Reply, most: int) -> None:
        """Take the place of the reply's stream."""
        assert reply.stream is not None
        super().__init__(reply.stream)
        self._goes = goes
        self.call = call
        self.reply = reply
        self.said = SpokenWords(most)
        self.tries = 0
        """How often somebody was asked for the rest."""
        self._part = reply
        self._decoder: EventDecoder | None = codec(call.dialect).StreamDecoder()
        self._encoder: EventEncoder | None = None
        self._cancel: Callable[[], None] | None = None
        self._before = 0
        """Tokens that were said before this part."""
        self._held = b""
        """What told of the failure: it is sent on only if nobody goes on."""
        self._unsent: list[str] = []
        self._broke_with: TpoError | None = None
        self._open = True
        self._shift = 0
        self._seam = ""
        reply.stream = self

    def stop_looking(self) -> None:
        """Nobody wants the rest."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    # -- Sink of a part -------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        if self._sink is None or self._held:
            return
        decoder = self._decoder
        if decoder is None:
            self._sink.data(chunk)
            return
        try:
            events = decoder.feed(chunk)
        except (TpoError, msgspec.MsgspecError, ValueError) as e:
            self._unreadable(chunk, e)
            return
        if self._encoder is None:
            self._pass(chunk, events)
        else:
            self._say(b"".join([self._anew(event) for event in events]))

    def end(self, error: TpoError | None) -> None:
        """A part is through."""
        self._origin = None
        if self._sink is None:
            return
        if error is None:
            self._finish(None)
            return
        self._broke_with = error
        cancel = self._goes.go_on(self, error)
        if self._broke_with is not None:  # neither rest nor none came yet
            self._cancel = cancel

    # -- from who asks --------------------------------------------------------------------------

    def rest(self, reply: Reply, seam: str, dropped: str = "") -> None:
        """Go on with this reply's stream; ``dropped`` are blanks that were not asked with."""
        assert reply.stream is not None
        self._cancel, self._broke_with, self._held = None, None, b""
        self._part, self._origin = reply, reply.stream
        self._before = self.said.tokens
        self._decoder = codec(self.call.dialect).StreamDecoder()
        self._open, self._shift, self._seam = False, 0, dropped
        encoder = self._encoder
        out = [b": continued by %b\n\n" % seam.encode()]
        if encoder is None:
            unsent, self._unsent = "".join(self._unsent), []
            encoder = self._encoder = self._primed(len(unsent))
            if unsent:
                out.append(encoder.encode(TextDelta(0, unsent)))
        self._say(b"".join(out))
        if self._origin is not None:  # else the client left
            self.follow(self._origin)

    def no_rest(self) -> None:
        """Nobody goes on: end as the broken part did."""
        self._cancel = None
        error, self._broke_with = self._broke_with, None
        held, self._held = self._held, b""
        if held:
            self._say(held)
        if error is not None:
            self._finish(error)

    # -- inside ---------------------------------------------------------------------------------

    def _pass(self, chunk: bytes, events: list[StreamEvent]) -> None:
        """Send on what came, unless it tells of a failure."""
        said = self.said
        texts: list[str] = []
        for event in events:
            if isinstance(event, ReplyFailed):
                if not said.why:
                    self._held, self._unsent = chunk, texts
                    return
            else:
                said.note(event)
                if type(event) is TextDelta:
                    texts.append(event.text)
        if said.why:
            self._decoder = None  # it passes as it is, to its end
        self._say(chunk)

    def _unreadable(self, chunk: bytes, error: Exception) -> None:
        """It is not in its dialect: of a first part that is for others to judge."""
        if self._encoder is None:
            self.said.why = self.said.why or "unreadable"
            self._decoder = None
            self._say(chunk)
            return
        origin, self._origin = self._origin, None
        if origin is not None:
            origin.cancel()
        self.end(as_tpo(error))

    def _anew(self, event: StreamEvent) -> bytes:
        """An event of the rest as one of the whole."""
        encoder = self._encoder
        assert encoder is not None
        if getattr(event, "choice", 0) or isinstance(event, ReplyStart):
            return b""
        if isinstance(event, ReplyFailed):
            if not self.said.why:
                self._held = encoder.encode(event)
                return b""
            return encoder.encode(event)
        before = b""
        if isinstance(event, BlockStart) and not self._open:
            self._open = True
            if type(event.block) is TextBlock:
                return b""  # the block that is open
            self._shift = 1
            before = encoder.encode(BlockStop(0))
        if isinstance(event, TextDelta) and self._seam:
            event = replace(event, text=self._sewn(event.text))
            if not event.text:
                return b""
        if isinstance(event, ReplyUsage):
            counts = event.usage
            prompt, completion = self._counted(counts.prompt, counts.completion)
            event = ReplyUsage(replace(counts, prompt=prompt, completion=completion))
        elif self._shift and isinstance(event, _INDEXED):
            event = replace(event, index=event.index + self._shift)
        if not isinstance(event, _QUIET):
            self.said.note(event)
        return before + encoder.encode(event)

    def _sewn(self, text: str) -> str:
        """Without the blanks that the client has already."""
        seam, at = self._seam, 0
        while at < min(len(seam), len(text)) and seam[at] == text[at]:
            at += 1
        self._seam = seam[at:] if at == len(text) else ""
        return text[at:]

    def _counted(self, prompt: int, completion: int) -> tuple[int, int]:
        before = min(self._before, max(prompt, 0))
        return prompt - before, completion + before

    def _primed(self, unsent: int) -> EventEncoder:
        """An encoder that has said what the client has seen: all but the last characters."""
        call = self.call
        mine = codec(call.dialect)
        encoder = mine.StreamEncoder(mine.request_to_canonical(call.body))
        text = self.said.text
        for event in (self.said.start or ReplyStart("", call.model), BlockStart(0, TextBlock("")),
                      TextDelta(0, text[: len(text) - unsent])):  # fmt: skip
            encoder.encode(event)
        return encoder

    def _say(self, data: bytes) -> None:
        if data and self._sink is not None:
            self._sink.data(data)

    def _finish(self, error: TpoError | None) -> None:
        part, reply = self._part, self.reply
        if part is not reply:
            usage = part.usage
            self._goes.book(self.call, self.call.backend, usage)
            if usage is None:
                reply.usage = None
            else:
                prompt, completion = self._counted(usage.prompt, usage.completion)
                reply.usage = Usage(prompt, completion, usage.cached)
            reply.finish_reason = part.finish_reason
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)
