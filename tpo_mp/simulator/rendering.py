"""The frames of a stream, rendered one at a time from the events of a whole answer.

Thousands of streams are open at a time, so what is only needed for the beginning (the request, the
reply, what the dialect adds) is let go with the first frame.

Invariants: nothing of a frame exists before it is taken; how much of the prompt was cached may be
told until the first one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from tpo_mp.dialects.canonical import ModelReply, ModelRequest, ReplyUsage, TokenUsage
from tpo_mp.dialects.codec import Codec, EventEncoder
from tpo_mp.types import Dialect

from . import dress
from .breaking_off import broken_off
from .chunks import chunked
from .events import Paced, Rest, events_of
from .fault_frames import Frame

_Counts: TypeAlias = Callable[[TokenUsage], bytes]


class CachedTokens(Struct):
    """How many of a prompt's tokens were known; it may be told until the first byte is written."""

    tokens: int = 0


class RenderedFrames:
    """An iterator of a stream's frames; ``sizes`` are the tokens of each, none: one each."""

    __slots__ = ("_begin", "_counts", "_encoder", "_events", "_rest")

    def __init__(
        self,
        codec: Codec,
        dialect: Dialect,
        request: ModelRequest,
        reply: ModelReply,
        sizes: Iterator[int] | None,
        cached: CachedTokens,
    ) -> None:
        self._rest = Rest()
        self._begin: Callable[[], tuple[EventEncoder, Iterator[Paced], _Counts | None]] | None
        self._begin = partial(_begun, codec, dialect, request, reply, sizes, cached, self._rest)
        self._encoder: EventEncoder
        self._events: Iterator[Paced]
        self._counts: _Counts | None

    def __iter__(self) -> RenderedFrames:
        return self

    def __next__(self) -> Frame:
        if self._begin is not None:
            self._start()
        event, tokens = next(self._events)
        if self._counts is not None and isinstance(event, ReplyUsage):
            return self._counts(event.usage), 0
        return self._encoder.encode(event), tokens

    def break_off(self, left: int, spent: int) -> None:
        """Let only ``left`` more tokens be said, and ``spent`` be counted."""
        if self._begin is not None:
            self._start()
        self._events = broken_off(self._events, self._rest, left, spent)

    def _start(self) -> None:
        begin, self._begin = self._begin, None
        assert begin is not None
        self._encoder, self._events, self._counts = begin()


def told(reply: ModelReply, cached: CachedTokens) -> ModelReply:
    """A reply with how much of its prompt was cached."""
    if not cached.tokens or reply.usage is None:
        return reply
    return replace(reply, usage=replace(reply.usage, cached=cached.tokens))


def _begun(
    codec: Codec,
    dialect: Dialect,
    request: ModelRequest,
    reply: ModelReply,
    sizes: Iterator[int] | None,
    cached: CachedTokens,
    rest: Rest,
) -> tuple[EventEncoder, Iterator[Paced], _Counts | None]:
    """What writes the events, the events, and what writes their usage where that is no event."""
    reply = told(reply, cached)
    legacy = dialect in dress.OPENAI_LEGACY
    events = events_of(
        reply,
        dress.start_extra(dialect, request, reply),
        ping=dialect is Dialect.ANTHROPIC_MESSAGES,
        begun=dress.begun_usage(dialect, reply),
        counted=request.usage_wanted or not legacy,
        rest=rest,
    )
    if sizes is not None:
        events = chunked(events, sizes)
    own = legacy and request.usage_wanted
    counts = partial(dress.usage_chunk, dialect, reply) if own else None
    return codec.StreamEncoder(request), events, counts
