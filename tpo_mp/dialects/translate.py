"""Any client dialect to any backend dialect, whole or streamed, by way of the canonical model.

Invariants: no pairwise translators; the same dialect on both sides should pass bytes and never
come here; a stream that breaks off ends with the client dialect's error event.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from tpo_mp.errors import TpoError

from .canonical import (
    Block,
    BlockStart,
    BlockStop,
    ModelReply,
    ModelRequest,
    OpaqueBlock,
    OpaqueDelta,
    RefusalBlock,
    ReplyChoice,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenUsage,
    ToolInputDelta,
    ToolUseBlock,
    Trait,
)
from .codec import Codec
from .failure import truncated


def translate_request(
    request: ModelRequest, target: Codec, *, model: str = "", stream: bool | None = None
) -> bytes:
    """The client's request in the backend's dialect, for another model or delivery if given.

    Raises ``InvalidRequest`` (``unsupported_translation``) naming the client's field.
    """
    changes = {"model": model} if model else {}
    wanted = request.stream if stream is None else stream
    return target.request_from_canonical(replace(request, **changes, stream=wanted))


def translate_reply(
    body: bytes, source: Codec, target: Codec, request: ModelRequest, *, created: int
) -> bytes:
    """The backend's whole reply in the client's dialect; raises ``BackendFailure``.

    ``created`` (epoch seconds) serves where the backend's dialect has no time.
    """
    return render_reply(source.reply_to_canonical(body), target, request, created=created)


def render_reply(reply: ModelReply, target: Codec, request: ModelRequest, *, created: int) -> bytes:
    """A canonical reply in the client's dialect."""
    if not reply.created:
        reply = replace(reply, created=created)
    return target.reply_from_canonical(_translated(reply, target), request)


def _translated(reply: ModelReply, target: Codec) -> ModelReply:
    """Without the blocks that only the backend's dialect knows."""
    if reply.source == target.NAME:
        return reply
    choices = tuple(
        replace(c, blocks=tuple(b for b in c.blocks if not isinstance(b, OpaqueBlock)))
        for c in reply.choices
    )
    return replace(reply, choices=choices)


class StreamTranslator:
    """One stream from the backend's dialect into the client's.

    Bytes in, bytes out; ``ended`` once the client's stream is complete, well or not, and
    ``error`` when not.
    """

    __slots__ = ("_created", "_decoder", "_encoder", "_foreign", "_hidden", "_single",
                 "ended", "error", "finish_reason", "usage")  # fmt: skip

    def __init__(
        self, source: Codec, target: Codec, request: ModelRequest, *, created: int
    ) -> None:
        """``created`` (epoch seconds) serves where the backend's dialect has no time."""
        self._decoder = source.StreamDecoder()
        self._encoder = target.StreamEncoder(request)
        self._created = created
        self._foreign = source.NAME != target.NAME
        self._single = Trait.CHOICES not in target.CARRIES
        self._hidden: dict[int, int] = {}
        self.ended = False
        self.error: TpoError | None = None
        self.usage: TokenUsage | None = None
        self.finish_reason = ""

    def feed(self, chunk: bytes) -> bytes:
        """Take upstream bytes, cut anywhere; what the client must see now."""
        if self.ended:
            return b""
        try:
            events = self._decoder.feed(chunk)
        except TpoError as e:
            return self.fail(e)
        if len(events) == 1 and not self._hidden:
            event = events[0]
            if type(event) is TextDelta and not event.choice:
                return self._encoder.encode(event)
        return b"".join([self._encode(event) for event in events])

    def close(self) -> bytes:
        """The upstream is done; an early end becomes the error event."""
        return b"".join([self._encode(event) for event in self._decoder.close()])

    def fail(self, error: TpoError) -> bytes:
        """End the client's stream with an error."""
        return self._encode(ReplyFailed(error))

    def _encode(self, event: StreamEvent) -> bytes:
        if self.ended or (self._single and _choice_of(event)):
            return b""
        if isinstance(event, ReplyStart) and not event.created:
            event = replace(event, created=self._created)
        elif isinstance(event, ReplyUsage):
            self.usage = event.usage
        elif isinstance(event, ReplyStop):
            self.finish_reason = event.stop
        elif isinstance(event, ReplyEnd):
            self.ended = True
        elif isinstance(event, ReplyFailed):
            self.ended = True
            self.error = event.error
        elif self._foreign:
            shown = self._shown(event)
            return b"" if shown is None else self._encoder.encode(shown)
        return self._encoder.encode(event)

    def _shown(self, event: StreamEvent) -> StreamEvent | None:
        """Without the blocks only the backend's dialect knows; the others are counted anew."""
        if isinstance(event, OpaqueDelta):
            return None
        if isinstance(event, BlockStart) and isinstance(event.block, OpaqueBlock):
            self._hidden[event.index] = event.index
            return None
        if not self._hidden or not isinstance(
            event,
            BlockStart | BlockStop | TextDelta | ToolInputDelta | ThinkingDelta | SignatureDelta,
        ):
            return event
        if event.index in self._hidden:
            return None
        before = sum(index < event.index for index in self._hidden)
        return replace(event, index=event.index - before)


def _choice_of(event: StreamEvent) -> int:
    """The choice an event is about; 0 for events about the whole."""
    choice: int = getattr(event, "choice", 0)
    return choice


def aggregate(events: Iterable[StreamEvent]) -> ModelReply:
    """A stream as a whole reply, for answering unary what was called streamed.

    Raises the error the stream ended with, or ``BackendFailure`` when it did not end.
    """
    whole = StreamAggregator()
    for event in events:
        whole.add(event)
    return whole.reply()


class StreamAggregator:
    """Collects events into a reply."""

    __slots__ = ("_choices", "_ended", "_start", "_usage", "error")

    def __init__(self) -> None:
        self._start = ReplyStart("", "")
        self._choices: dict[int, _ChoiceParts] = {}
        self._usage: TokenUsage | None = None
        self._ended = False
        self.error: TpoError | None = None

    def add(self, event: StreamEvent) -> None:
        """Take the next event."""
        if isinstance(event, ReplyStart):
            self._start = event
            self._usage = event.usage
        elif isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            self._ended = True
        elif isinstance(event, ReplyFailed):
            self.error = event.error
        elif isinstance(
            event,
            BlockStart | TextDelta | ToolInputDelta | ThinkingDelta | SignatureDelta | ReplyStop,
        ):
            parts = self._choices.get(event.choice)
            if parts is None:
                parts = self._choices[event.choice] = _ChoiceParts()
            parts.add(event)

    def reply(self) -> ModelReply:
        """The whole; raises the stream's error, or ``BackendFailure`` when its end is missing."""
        if self.error is not None:
            raise self.error
        if not self._ended:
            raise truncated()
        last = max(self._choices, default=-1)
        choices = (self._choices.get(i, _ChoiceParts()).choice() for i in range(last + 1))
        start = self._start
        return ModelReply(
            id=start.id,
            model=start.model,
            created=start.created,
            choices=tuple(choices) or (ReplyChoice(()),),
            usage=self._usage,
        )


class _ChoiceParts:
    """The blocks of one choice, growing."""

    __slots__ = ("blocks", "logprobs", "signatures", "stop", "words")

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.words: dict[int, list[str]] = {}
        self.signatures: dict[int, str] = {}
        self.logprobs: list[dict[str, object]] | None = None
        self.stop: ReplyStop | None = None

    def add(
        self,
        event: BlockStart | TextDelta | ToolInputDelta | ThinkingDelta | SignatureDelta | ReplyStop,
    ) -> None:
        if isinstance(event, ReplyStop):
            self.stop = event
        elif isinstance(event, BlockStart):
            self.blocks[event.index] = event.block
            self.words[event.index] = []
        elif isinstance(event, SignatureDelta):
            signature = self.signatures.get(event.index, "") + event.signature
            self.signatures[event.index] = signature
        elif isinstance(event, ToolInputDelta):
            self.words.setdefault(event.index, []).append(event.json)
        else:
            self.words.setdefault(event.index, []).append(event.text)
            if isinstance(event, TextDelta) and event.logprobs is not None:
                self.logprobs = (self.logprobs or []) + event.logprobs

    def choice(self) -> ReplyChoice:
        blocks = tuple(self._whole(index) for index in sorted(self.blocks))
        stop = self.stop or ReplyStop("end")
        return ReplyChoice(blocks, stop.stop, stop.stop_sequence, self.logprobs)

    def _whole(self, index: int) -> Block:
        block, words = self.blocks[index], "".join(self.words.get(index, ()))
        if isinstance(block, TextBlock | RefusalBlock):
            return replace(block, text=block.text + words)
        if isinstance(block, ThinkingBlock):
            signature = block.signature + self.signatures.get(index, "")
            return replace(block, text=block.text + words, signature=signature)
        if isinstance(block, ToolUseBlock):
            return replace(block, arguments=block.arguments + words)
        return block


def events_of(reply: ModelReply) -> list[StreamEvent]:
    """A whole reply as a stream, for clients that asked for one."""
    out: list[StreamEvent] = [ReplyStart(reply.id, reply.model, reply.created, reply.usage)]
    for number, choice in enumerate(reply.choices):
        for index, block in enumerate(choice.blocks):
            _replay(block, index, number, choice, out)
        out.append(ReplyStop(choice.stop or "end", choice.stop_sequence, number))
    if reply.usage is not None:
        out.append(ReplyUsage(reply.usage))
    out.append(ReplyEnd())
    return out


def _replay(
    block: Block, index: int, number: int, choice: ReplyChoice, out: list[StreamEvent]
) -> None:
    if isinstance(block, TextBlock | RefusalBlock):
        logprobs = choice.logprobs if isinstance(block, TextBlock) else None
        first = not any(isinstance(e, TextDelta) and e.choice == number for e in out)
        out.append(BlockStart(index, replace(block, text="", extra=None), number))
        if block.text:
            out.append(TextDelta(index, block.text, number, logprobs if first else None))
    elif isinstance(block, ThinkingBlock):
        out.append(BlockStart(index, ThinkingBlock(""), number))
        if block.text:
            out.append(ThinkingDelta(index, block.text, number))
        if block.signature:
            out.append(SignatureDelta(index, block.signature, number))
    elif isinstance(block, ToolUseBlock):
        out.append(BlockStart(index, ToolUseBlock(block.id, block.name, ""), number))
        if block.arguments:
            out.append(ToolInputDelta(index, block.arguments, number))
    else:
        out.append(BlockStart(index, block, number))
    out.append(BlockStop(index, number))
