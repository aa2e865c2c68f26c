"""OpenAI chat completion streams: chunks to canonical events and back.

Source: OpenAI API reference, chat completion chunks: the first chunk of a choice names the role,
the last has ``finish_reason``, usage comes in a chunk without choices, ``data: [DONE]`` ends.

Invariants: the decoder opens and closes blocks that the wire only implies; an in-band ``error``
ends the stream; nothing follows the end.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from msgspec import Struct

from .body import Index, Seconds
from .canonical import (
    Block,
    BlockStart,
    BlockStop,
    ModelRequest,
    Ping,
    RedactedBlock,
    RefusalBlock,
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
    own_id,
)
from .failure import bad_body, of_object, truncated
from .openai_chat_body import ID
from .openai_wire import (
    DONE,
    FINISH_OF_STOP,
    STOP_OF_FINISH,
    TokenCounts,
    error_event,
    usage_out,
)
from .sse import EventCutter


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(Struct, gc=False):
    index: Index = 0
    id: str | None = None
    function: _Function | None = None


class _Signed(Struct, gc=False):
    type: str = "thinking"
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking_blocks: list[_Signed] | None = None
    refusal: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _Logprobs(Struct):
    content: list[dict[str, Any]] | None = None


class _Choice(Struct):
    index: Index = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct):
    id: str | None = None
    model: str | None = None
    created: Seconds | None = None
    choices: list[_Choice] | None = None
    usage: TokenCounts | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class ChoiceState:
    """Which block of a choice is open."""

    __slots__ = ("count", "index", "open", "stopped", "tools")

    def __init__(self, index: int) -> None:
        self.index = index
        self.count = 0
        self.open = ""
        self.tools: dict[int, int] = {}
        self.stopped = False

    def begin(self, kind: str, block: Block, out: list[StreamEvent]) -> int:
        """Open a block, closing the one before."""
        if self.open:
            out.append(BlockStop(self.count - 1, self.index))
        self.open = kind
        number = self.count
        self.count += 1
        out.append(BlockStart(number, block, self.index))
        return number

    def finish(self, out: list[StreamEvent]) -> None:
        """Close what is open."""
        if self.open:
            out.append(BlockStop(self.count - 1, self.index))
            self.open = ""


class ChatDecoder:
    """Chunks to events."""

    __slots__ = ("_choices", "_cutter", "_over", "_started")

    def __init__(self) -> None:
        self._cutter = EventCutter()
        self._choices: dict[int, ChoiceState] = {}
        self._started = False
        self._over = False

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no chat stream."""
        out: list[StreamEvent] = []
        for _, data in self._cutter.feed(chunk):
            if self._over:
                break
            if data == b"[DONE]":
                self._end(out)
                break
            try:
                self._read(_decode(data), out)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
                raise bad_body(f"a chunk that is none: {e}") from None
        return out

    def close(self) -> list[StreamEvent]:
        """The upstream is done."""
        if self._over:
            return []
        self._over = True
        return [ReplyFailed(truncated())]

    def _end(self, out: list[StreamEvent]) -> None:
        self._over = True
        if not self._started:
            out.append(ReplyFailed(truncated()))
            return
        for state in self._choices.values():
            state.finish(out)
            if not state.stopped:
                out.append(ReplyStop("end", None, state.index))
        out.append(ReplyEnd())

    def _read(self, chunk: _Chunk, out: list[StreamEvent]) -> None:
        if chunk.error:
            self._over = True
            out.append(ReplyFailed(of_object(chunk.error)))
            return
        if not self._started:
            self._started = True
            created = int(chunk.created or 0)
            out.append(ReplyStart(chunk.id or "", chunk.model or "", created))
        for choice in chunk.choices or ():
            state = self._choices.get(choice.index)
            if state is None:
                state = self._choices[choice.index] = ChoiceState(choice.index)
            delta = choice.delta
            if delta is None:
                pass
            elif state.open == "text" and choice.logprobs is None and _is_text(delta):
                out.append(TextDelta(state.count - 1, delta.content or "", state.index))
            else:
                _read_delta(state, delta, choice.logprobs, out)
            if choice.finish_reason and not state.stopped:
                state.finish(out)
                state.stopped = True
                stop = STOP_OF_FINISH.get(choice.finish_reason, "end")
                out.append(ReplyStop(stop, None, state.index))
        if chunk.usage is not None:
            out.append(ReplyUsage(chunk.usage.canonical()))


def _is_text(delta: _Delta) -> bool:
    return bool(delta.content) and delta.tool_calls is None and delta.reasoning_content is None


def _read_delta(
    state: ChoiceState, delta: _Delta, logprobs: _Logprobs | None, out: list[StreamEvent]
) -> None:
    thought = delta.reasoning_content or delta.reasoning
    if thought:
        if state.open != "thinking":
            state.begin("thinking", ThinkingBlock(""), out)
        out.append(ThinkingDelta(state.count - 1, thought, state.index))
    for signed in delta.thinking_blocks or ():
        _read_signed(state, signed, out)
    if delta.content:
        if state.open != "text":
            state.begin("text", TextBlock(""), out)
        entries = logprobs.content if logprobs else None
        out.append(TextDelta(state.count - 1, delta.content, state.index, entries))
    if delta.refusal:
        if state.open != "refusal":
            state.begin("refusal", RefusalBlock(""), out)
        out.append(TextDelta(state.count - 1, delta.refusal, state.index))
    for call in delta.tool_calls or ():
        _read_call(state, call, out)


def _read_signed(state: ChoiceState, signed: _Signed, out: list[StreamEvent]) -> None:
    if signed.type == "redacted_thinking":
        state.begin("redacted", RedactedBlock(signed.data or ""), out)
    elif signed.signature:
        if state.open != "thinking":
            state.begin("thinking", ThinkingBlock(""), out)
        out.append(SignatureDelta(state.count - 1, signed.signature, state.index))
        state.open = "signed"


def _read_call(state: ChoiceState, call: _ToolDelta, out: list[StreamEvent]) -> None:
    function = call.function
    number = state.tools.get(call.index)
    if number is None:
        name = (function.name if function else None) or ""
        number = state.begin("tool", ToolUseBlock(call.id or "", name, ""), out)
        state.tools[call.index] = number
    if function is not None and function.arguments:
        out.append(ToolInputDelta(number, function.arguments, state.index))


class ChatEncoder:
    """Events to chunks."""

    __slots__ = ("_refusals", "_roles", "_text_head", "_text_index", "_tools", "_usage",
                 "_usage_wanted")  # fmt: skip

    def __init__(self, request: ModelRequest) -> None:
        """Only whether ``request`` wants usage matters."""
        self._usage_wanted = request.usage_wanted
        self._usage: TokenUsage | None = None
        self._tools: dict[tuple[int, int], int] | None = None
        # Tuples: an empty set is 216 bytes, and most streams have one choice and refuse nothing.
        self._refusals: tuple[tuple[int, int], ...] = ()
        self._roles: tuple[int, ...] = ()
        self._text_index = -1
        self._text_head = b""

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where chat says nothing."""
        if isinstance(event, TextDelta):
            if event.index == self._text_index and not event.choice and event.logprobs is None:
                return self._text_head + orjson.dumps(event.text) + _TEXT_TAIL
            return self._text(event)
        if isinstance(event, ToolInputDelta):
            number = (self._tools or {}).get((event.choice, event.index), 0)
            call = {"index": number, "function": {"arguments": event.json}}
            return self._chunk(event.choice, {"tool_calls": [call]})
        if isinstance(event, ThinkingDelta):
            return self._chunk(event.choice, {"reasoning_content": event.text})
        if isinstance(event, BlockStart):
            return self._begin(event)
        if isinstance(event, SignatureDelta):
            signed = {"type": "thinking", "thinking": "", "signature": event.signature}
            return self._chunk(event.choice, {"thinking_blocks": [signed]})
        if isinstance(event, ReplyStop):
            return self._chunk(event.choice, {}, FINISH_OF_STOP[event.stop])
        return self._frame(event)

    def _frame(self, event: StreamEvent) -> bytes:
        if isinstance(event, ReplyStart):
            return self._start(event)
        if isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            return self._end()
        elif isinstance(event, ReplyFailed):
            return error_event(event.error)
        elif isinstance(event, Ping):
            return b": ping\n\n"
        return b""

    def _start(self, event: ReplyStart) -> bytes:
        head: dict[str, Any] = {
            "id": own_id(event.id, ID),
            "object": "chat.completion.chunk",
            "created": event.created,
            "model": event.model,
        }
        head |= event.extra or {}
        self._text_head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[' + _TEXT_BEGIN
        self._usage = event.usage
        return self._chunk(0, {})

    @property
    def _head(self) -> bytes:
        """How every chunk begins; it is kept once, with what a piece of text goes on with."""
        return self._text_head[: -len(_TEXT_BEGIN)]

    def _text(self, event: TextDelta) -> bytes:
        logprobs = None if event.logprobs is None else {"content": event.logprobs}
        key = "refusal" if (event.choice, event.index) in self._refusals else "content"
        return self._chunk(event.choice, {key: event.text}, None, logprobs)

    def _begin(self, event: BlockStart) -> bytes:
        block = event.block
        if isinstance(block, TextBlock):
            if not event.choice:
                self._text_index = event.index
        elif isinstance(block, ToolUseBlock):
            tools = self._tools = {} if self._tools is None else self._tools
            number = sum(choice == event.choice for choice, _ in tools)
            tools[event.choice, event.index] = number
            function = {"name": block.name, "arguments": block.arguments}
            call = {"index": number, "id": block.id, "type": "function", "function": function}
            return self._chunk(event.choice, {"tool_calls": [call]})
        elif isinstance(block, RefusalBlock):
            self._refusals += ((event.choice, event.index),)
        elif isinstance(block, RedactedBlock):
            redacted = {"type": "redacted_thinking", "data": block.data}
            return self._chunk(event.choice, {"thinking_blocks": [redacted]})
        return b""

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        if choice not in self._roles:
            self._roles += (choice,)
            delta = {"role": "assistant", "content": ""} | delta
        entry: dict[str, Any] = {"index": choice, "delta": delta, "finish_reason": finish}
        if logprobs is not None:
            entry["logprobs"] = logprobs
        return self._head + orjson.dumps(entry) + b"]}\n\n"

    def _end(self) -> bytes:
        if not self._usage_wanted or self._usage is None:
            return DONE
        return self._head + b'],"usage":' + orjson.dumps(usage_out(self._usage)) + b"}\n\n" + DONE


_TEXT_BEGIN = b'{"index":0,"delta":{"content":'
_TEXT_TAIL = b'},"finish_reason":null}]}\n\n'
