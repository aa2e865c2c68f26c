"""Anthropic message streams: named events to canonical events and back.

Source: Anthropic API reference, streaming messages: ``message_start``, per block
``content_block_start`` · ``content_block_delta`` · ``content_block_stop``, then ``message_delta``
with stop reason and usage, ``message_stop``; ``ping`` and ``error`` anywhere.

Invariants: a signature passes to the character; the stop reason and usage wait for each other,
because this wire says them in one event; nothing follows ``message_stop`` or ``error``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from msgspec import UNSET, Struct, UnsetType

from tpo_mp.errors import InvalidRequest

from .anthropic_messages_body import (
    ID,
    STOP_OF_REASON,
    block_in,
    block_out,
    reason_of,
    usage_in,
    usage_out,
)
from .anthropic_wire import error_event, named_event
from .body import Fields, Index
from .canonical import (
    Block,
    BlockStart,
    BlockStop,
    ModelRequest,
    OpaqueDelta,
    Ping,
    RefusalBlock,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StopReason,
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
from .sse import EventCutter


class _Delta(Struct):
    type: str = ""
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    citation: dict[str, Any] | None = None
    stop_reason: str | UnsetType | None = UNSET
    stop_sequence: str | None = None


class _Wire(Struct):
    type: str
    index: Index = 0
    delta: _Delta | None = None
    content_block: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Wire).decode


class MessagesDecoder:
    """Named events to canonical ones."""

    __slots__ = ("_count", "_cutter", "_numbers", "_over", "_started", "_stopped",
                 "_unsaid", "_usage")  # fmt: skip

    def __init__(self) -> None:
        self._cutter = EventCutter()
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._usage: TokenUsage | None = None
        self._started = False
        self._stopped = False
        self._unsaid = False
        self._over = False

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no such stream."""
        out: list[StreamEvent] = []
        try:
            for _, data in self._cutter.feed(chunk):
                if self._over:
                    break
                self._read(_decode(data), out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise bad_body(f"an event that is none: {e}") from None
        except InvalidRequest as e:
            raise bad_body(f"an event that is none: {e.message}") from None
        return out

    def close(self) -> list[StreamEvent]:
        """The upstream is done."""
        if self._over:
            return []
        self._over = True
        return [ReplyFailed(truncated())]

    def _read(self, wire: _Wire, out: list[StreamEvent]) -> None:
        if wire.type == "content_block_delta":
            if wire.delta is not None:
                self._delta(wire.index, wire.delta, out)
        elif wire.type == "content_block_start":
            self._block(wire.index, wire.content_block or {}, out)
        elif wire.type == "content_block_stop":
            out.append(BlockStop(self._numbers.get(wire.index, wire.index)))
        elif wire.type == "message_start":
            self._start(Fields(wire.message or {}, "message"), out)
        elif wire.type == "message_delta":
            self._stop(wire, out)
        elif wire.type == "message_stop":
            self._over = True
            if self._unsaid and not self._stopped:
                out.append(ReplyStop("abort"))
                if self._usage is not None:
                    out.append(ReplyUsage(self._usage))
                out.append(ReplyEnd())
            elif self._stopped:
                out.append(ReplyEnd())
            else:
                out.append(ReplyFailed(truncated()))
        elif wire.type == "error":
            self._over = True
            out.append(ReplyFailed(of_object(wire.error)))
        elif wire.type == "ping":
            out.append(Ping())

    def _delta(self, index: int, delta: _Delta, out: list[StreamEvent]) -> None:
        number = self._numbers.get(index, index)
        if delta.text is not None:
            out.append(TextDelta(number, delta.text))
        elif delta.partial_json is not None:
            if delta.partial_json:
                out.append(ToolInputDelta(number, delta.partial_json))
        elif delta.thinking is not None:
            out.append(ThinkingDelta(number, delta.thinking))
        elif delta.signature is not None:
            out.append(SignatureDelta(number, delta.signature))
        elif delta.citation is not None:
            raw = {"type": "citations_delta", "citation": delta.citation}
            out.append(OpaqueDelta(number, raw))

    def _block(self, index: int, raw: dict[str, Any], out: list[StreamEvent]) -> None:
        number = self._numbers[index] = self._count
        self._count += 1
        block = block_in(raw, "content_block")
        if isinstance(block, TextBlock):
            out.append(BlockStart(number, TextBlock("")))
            if block.text:
                out.append(TextDelta(number, block.text))
        elif isinstance(block, ToolUseBlock):
            out.append(BlockStart(number, ToolUseBlock(block.id, block.name, "")))
            if block.arguments != "{}":
                out.append(ToolInputDelta(number, block.arguments))
        elif isinstance(block, ThinkingBlock):
            out.append(BlockStart(number, ThinkingBlock("")))
            if block.text:
                out.append(ThinkingDelta(number, block.text))
            if block.signature:
                out.append(SignatureDelta(number, block.signature))
        else:
            out.append(BlockStart(number, block))

    def _start(self, message: Fields, out: list[StreamEvent]) -> None:
        usage = message.table("usage")
        self._usage = None if usage is None else usage_in(Fields(usage, "usage"))
        reply_id, model = message.text("id") or "", message.text("model") or ""
        out.append(ReplyStart(reply_id, model, 0, self._usage))

    def _stop(self, wire: _Wire, out: list[StreamEvent]) -> None:
        delta = wire.delta
        if wire.usage is not None:
            self._usage = usage_in(Fields(wire.usage, "usage"), self._usage)
        reason = UNSET if delta is None else delta.stop_reason
        if delta is not None and reason and not self._stopped:
            self._stopped = True
            out.append(ReplyStop(STOP_OF_REASON.get(reason, "end"), delta.stop_sequence))
        self._unsaid = self._unsaid or reason is None
        if self._usage is not None and self._stopped:
            out.append(ReplyUsage(self._usage))


class MessagesEncoder:
    """Canonical events to named ones; of several choices only the first fits."""

    __slots__ = ("_opaque", "_refused", "_stop", "_usage")

    def __init__(self, request: ModelRequest) -> None:  # noqa: ARG002 - every codec's signature
        """Every client of this dialect gets usage."""
        self._usage: TokenUsage | None = None
        self._stop: ReplyStop | None = None
        self._refused = False

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where they come later."""
        if isinstance(event, TextDelta):
            return _DELTA % (event.index, b"text_delta", b"text", orjson.dumps(event.text))
        if isinstance(event, ToolInputDelta):
            words = orjson.dumps(event.json)
            return _DELTA % (event.index, b"input_json_delta", b"partial_json", words)
        if isinstance(event, ThinkingDelta):
            words = orjson.dumps(event.text)
            return _DELTA % (event.index, b"thinking_delta", b"thinking", words)
        if isinstance(event, BlockStart):
            return self._begin(event.index, event.block)
        if isinstance(event, BlockStop):
            return _STOP % event.index
        if isinstance(event, SignatureDelta):
            words = orjson.dumps(event.signature)
            return _DELTA % (event.index, b"signature_delta", b"signature", words)
        return self._frame(event)

    def _frame(self, event: StreamEvent) -> bytes:
        if isinstance(event, ReplyStart):
            return self._start(event)
        if isinstance(event, ReplyStop):
            self._stop = event
        elif isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            return self._end()
        elif isinstance(event, ReplyFailed):
            return error_event(event.error)
        elif isinstance(event, Ping):
            return b'event: ping\ndata: {"type":"ping"}\n\n'
        elif isinstance(event, OpaqueDelta):
            wire = {"type": "content_block_delta", "index": event.index, "delta": event.raw}
            return named_event(b"content_block_delta", wire)
        return b""

    def _start(self, event: ReplyStart) -> bytes:
        self._usage = event.usage
        message: dict[str, Any] = {
            "id": own_id(event.id, ID),
            "type": "message",
            "role": "assistant",
            "model": event.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_out(event.usage or TokenUsage()),
        } | (event.extra or {})
        return named_event(b"message_start", {"type": "message_start", "message": message})

    def _begin(self, index: int, block: Block) -> bytes:
        if isinstance(block, RefusalBlock):
            self._refused = True
        shown = {"type": "content_block_start", "index": index, "content_block": block_out(block)}
        return named_event(b"content_block_start", shown)

    def _end(self) -> bytes:
        stop: StopReason = self._stop.stop if self._stop else "end"
        refused = (RefusalBlock(""),) if self._refused else ()
        delta = {
            "stop_reason": reason_of(stop, refused),
            "stop_sequence": self._stop.stop_sequence if self._stop else None,
        }
        usage = usage_out(self._usage or TokenUsage())
        wire = {"type": "message_delta", "delta": delta, "usage": usage}
        return named_event(b"message_delta", wire) + _MESSAGE_STOP


_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":%b}}\n\n'
)
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
